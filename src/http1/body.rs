//! The body of a message: which of the bytes that come are payload, and where it ends.
//!
//! The decoder says how much of the input is framing and how much payload; the payload stays where it is. It
//! buffers nothing but trailers, which are few. Once broken or done it stays so.
//!
//! Chunked as RFC 9112 §7.1 writes it and not more: bare LF, a sign, `0x`, spaces around the size are refused, and
//! sizes of more than 16 digits or beyond what a signed number holds. Chunk extensions are read past (§7.1.1:
//! unknown ones must be ignored) if they are printable, and bounded, for they carry no payload. Trailers are
//! held to the rules of fields.

use super::field::Fields;
use super::framing::{Framing, MAX_LENGTH};
use super::head;

#[cfg(test)]
mod tests;

/// What the next bytes of the input are. What it skips is consumed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// After `skip` bytes of framing `len` bytes of payload stand in the input; never 0. All are consumed: the next
    /// call gets what stands behind them.
    Data {
        /// Bytes of framing.
        skip: usize,
        /// Bytes of payload.
        len: usize,
    },
    /// All of the input was framing, and more is needed.
    More {
        /// The length of the input.
        skip: usize,
    },
    /// The message ends after so many bytes of framing; what follows is not its.
    End {
        /// Bytes of framing.
        skip: usize,
    },
}

/// The body is not what its framing promised; says how. Its connection can't go on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Broken(pub &'static str);

/// Reads one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk extensions so far.
    extensions: u32,
    /// Of a chunked body that has any.
    trailers: Option<Box<Trailers>>,
}

/// Trailers that have come so far, and their fields once they are complete.
#[derive(Default, Debug)]
struct Trailers {
    text: Vec<u8>,
    fields: Fields,
}

/// What comes next.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    /// So many bytes of payload and then nothing; not 0.
    Length(u64),
    /// Payload until the connection closes.
    UntilClose,
    /// More digits of a chunk's size, or what ends them.
    Size { size: u64, digits: u8 },
    /// More of an extension, or the end of its line.
    Extension { size: u64 },
    /// The LF after a chunk's size.
    SizeLf { size: u64 },
    /// So many bytes of a chunk's payload; not 0.
    Chunk { left: u64 },
    /// The CR after a chunk.
    ChunkCr,
    /// The LF after a chunk.
    ChunkLf,
    /// A line of a trailer, or the empty line that ends the body.
    TrailerStart,
    /// More of a line of a trailer.
    TrailerLine,
    /// The LF after a trailer.
    TrailerLf,
    /// The LF of the empty line that ends the body.
    EndLf,
    /// Nothing.
    Done,
    /// Nothing that could be understood.
    Broken(&'static str),
}

/// The first state of each chunk.
const NEW_CHUNK: State = State::Size { size: 0, digits: 0 };

/// The most digits of a chunk's size, leading zeros included.
const MAX_SIZE_DIGITS: u8 = 16;

/// The most bytes of chunk extensions in one body, beyond an eighth of its payload. Nobody reads them; enough for
/// some, not for a flood.
const MAX_EXTENSIONS: u32 = 8 << 10;

/// The most bytes of trailers in one body.
const MAX_TRAILERS_SIZE: usize = 8 << 10;

/// The most trailers in one body.
const MAX_TRAILERS: usize = 64;

impl Decoder {
    /// A reader of a body that is framed so.
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => NEW_CHUNK,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0, trailers: None }
    }

    /// Reads on. `input` begins with the first byte that no earlier call consumed.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, Broken> {
        match self.state {
            State::Done => Ok(Piece::End { skip: 0 }),
            State::Broken(how) => Err(Broken(how)),
            _ if input.is_empty() => Ok(Piece::More { skip: 0 }),
            State::Length(left) => {
                let len = within(left, input.len());
                let left = left - len as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Piece::Data { skip: 0, len })
            }
            State::UntilClose => Ok(Piece::Data { skip: 0, len: input.len() }),
            _ => self.next_chunked(input).map_err(|how| {
                self.state = State::Broken(how);
                Broken(how)
            }),
        }
    }

    fn next_chunked(&mut self, input: &[u8]) -> Result<Piece, &'static str> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            self.state = match self.state {
                State::Chunk { left } => {
                    let len = within(left, input.len() - at);
                    let left = left - len as u64;
                    self.state = if left == 0 { State::ChunkCr } else { State::Chunk { left } };
                    return Ok(Piece::Data { skip: at, len });
                }
                State::Size { size, digits } => match (byte, HEX[byte as usize]) {
                    (_, digit @ 0..16) if digits < MAX_SIZE_DIGITS => {
                        State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                    }
                    (_, 0..16) => return Err("a chunk size of too many digits"),
                    _ if digits == 0 || size > MAX_LENGTH => return Err("malformed chunk size"),
                    (b'\r', _) => State::SizeLf { size },
                    (b';', _) => State::Extension { size },
                    _ => return Err("malformed chunk size"),
                },
                State::Extension { size } => match byte {
                    b'\r' => State::SizeLf { size },
                    b'\t' | b' '..=b'~' if self.extensions < MAX_EXTENSIONS => {
                        self.extensions += 1;
                        State::Extension { size }
                    }
                    b'\t' | b' '..=b'~' => return Err("chunk extensions are too large"),
                    _ => return Err("malformed chunk extension"),
                },
                State::SizeLf { .. } | State::ChunkLf | State::TrailerLf | State::EndLf if byte != b'\n' => {
                    return Err("bare CR");
                }
                State::SizeLf { size: 0 } => State::TrailerStart,
                State::SizeLf { size } => {
                    // A chunk pays for extensions by what it carries (signatures come with every chunk).
                    let paid = u32::try_from(size / 8).unwrap_or(u32::MAX);
                    self.extensions = self.extensions.saturating_sub(paid);
                    State::Chunk { left: size }
                }
                State::ChunkCr if byte == b'\r' => State::ChunkLf,
                State::ChunkCr => return Err("a chunk longer than its size"),
                State::ChunkLf => NEW_CHUNK,
                State::TrailerStart if byte == b'\r' => State::EndLf,
                State::TrailerStart | State::TrailerLine => match byte {
                    b'\n' => return Err("bare LF"),
                    b'\r' => self.keep(byte, State::TrailerLf)?,
                    _ => self.keep(byte, State::TrailerLine)?,
                },
                State::TrailerLf => self.keep(byte, State::TrailerStart)?,
                State::EndLf => {
                    self.finish_trailers()?;
                    self.state = State::Done;
                    return Ok(Piece::End { skip: at + 1 });
                }
                State::Length(_) | State::UntilClose | State::Done | State::Broken(_) => {
                    unreachable!("`next` has answered for these")
                }
            };
            at += 1;
        }
        Ok(Piece::More { skip: at })
    }

    /// Keeps a byte of a trailer.
    fn keep(&mut self, byte: u8, then: State) -> Result<State, &'static str> {
        let trailers = self.trailers.get_or_insert_default();
        if trailers.text.len() == MAX_TRAILERS_SIZE {
            return Err("the trailers are too large");
        }
        trailers.text.push(byte);
        Ok(then)
    }

    /// Reads the trailers that were kept.
    fn finish_trailers(&mut self) -> Result<(), &'static str> {
        if let Some(trailers) = &mut self.trailers {
            trailers.text.extend_from_slice(b"\r\n");
            head::parse_trailers(&mut trailers.fields, &trailers.text, MAX_TRAILERS)?;
            trailers.text = Vec::new();
        }
        Ok(())
    }

    /// Whether the message has ended; nothing of it is to come.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Of a body that was announced with its length: the bytes that are to come.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The connection has closed: the proper end of a body that ends so, and of one that has ended already; any
    /// other is cut.
    pub fn at_eof(&mut self) -> Result<(), Broken> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Broken(how) => Err(Broken(how)),
            _ => {
                self.state = State::Broken("the connection closed before the body's end");
                Err(Broken("the connection closed before the body's end"))
            }
        }
    }

    /// The trailers, once the body has ended, if there are any. Without those that concern the connection alone.
    pub fn trailers(&self) -> Option<&Fields> {
        let fields = &self.trailers.as_ref()?.fields;
        (self.is_done() && !fields.is_empty()).then_some(fields)
    }
}

/// How much of `left` bytes is among `there`.
fn within(left: u64, there: usize) -> usize {
    usize::try_from(left).map_or(there, |left| left.min(there))
}

/// The value of each hexadecimal digit; 255 for what is none.
static HEX: [u8; 256] = {
    let mut values = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        values[b"0123456789abcdef"[digit] as usize] = digit as u8;
        values[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};
