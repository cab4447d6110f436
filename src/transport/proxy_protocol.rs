//! The PROXY protocol, versions 1 and 2: whoever passes a connection on says first whose it is (HAProxy's
//! `doc/proxy-protocol.txt`).
//!
//! A codec without I/O, for both roles. Strict: what does not begin with a header, or with one that is not exactly as
//! the specification has it, is refused, since whoever may send it decides who the client is. Bounded: version 1 has
//! at most `MAX_V1` bytes, version 2 at most `MAX_V2`. Its extensions (TLVs) are skipped.
//!
//! What stands behind the header is another protocol's (TLS has a reader of its own), so it must not be read with it:
//! [`Parsed::Partial`] says how many bytes surely belong to the header, and only so many are read next. That takes a
//! few reads for a version 1 header, once for each connection. Rejected: to peek, which wakes up for the same bytes
//! again and again while the rest is on its way.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest header of version 1.
const MAX_V1: usize = 107;
/// The longest header of version 2 that is taken: room for what senders add of a client's certificate.
const MAX_V2: usize = 16 + 4096;
/// The shortest header of either version: `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// How version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";

/// `proxy_protocol`: the version that an upstream is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Whose a connection is: the client's address, and the one that it connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client's.
    pub client: SocketAddr,
    /// Where it came in.
    pub local: SocketAddr,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing: the sender speaks for itself (a health check), or does not know. The connection's own ends count.
    Nothing,
    /// The client and where it came in.
    Ends(Ends),
    /// The client is at a Unix socket.
    Unix,
}

/// How far a header was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// It is not complete: at least so many bytes follow that belong to it, and at least one.
    Partial {
        /// Bytes.
        more: usize,
    },
    /// It is complete.
    Header {
        /// Its length in bytes.
        size: usize,
        /// What it says.
        said: Said,
    },
}

/// Why what came is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not begin like one.
    Missing,
    /// It begins like one, and breaks its rules.
    Malformed,
}

/// What a connection to an upstream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// In which version.
    pub version: Version,
    /// Of whom; nobody: the connection is the sender's own, or its client has no address.
    pub ends: Option<Ends>,
}

/// Reads the header at the front of `input`.
///
/// # Errors
/// [`Refusal`], as soon as it shows.
pub fn parse(input: &[u8]) -> Result<Parsed, Refusal> {
    let begins = |with: &[u8]| input.iter().zip(with).all(|(came, wanted)| came == wanted);
    if begins(WORD) {
        return parse_v1(input);
    }
    if begins(SIGNATURE) {
        return parse_v2(input);
    }
    Err(Refusal::Missing)
}

fn parse_v1(input: &[u8]) -> Result<Parsed, Refusal> {
    let line = &input[..input.len().min(MAX_V1)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        let is_broken = line.iter().rev().skip(1).any(|byte| *byte == b'\r');
        if is_broken || line.len() == MAX_V1 {
            return Err(Refusal::Malformed);
        }
        return Ok(Parsed::Partial { more: missing_v1(line)? });
    };
    let text = line[..end].strip_suffix(b"\r").and_then(|text| text.strip_prefix(WORD));
    let text = text.filter(|text| !text.contains(&b'\r')).and_then(|text| std::str::from_utf8(text).ok());
    let text = text.ok_or(Refusal::Malformed)?;
    let said = said_v1(text).ok_or(Refusal::Malformed)?;
    Ok(Parsed::Header { size: end + 1, said })
}

/// How many bytes follow at least, of a line that is not complete.
fn missing_v1(line: &[u8]) -> Result<usize, Refusal> {
    const UNKNOWN: &[u8] = b"PROXY UNKNOWN";
    if line.len() < SHORTEST {
        return Ok(SHORTEST - line.len());
    }
    if line.ends_with(b"\r") {
        return Ok(1);
    }
    if line.starts_with(UNKNOWN) {
        return Ok(2);
    }
    // Of `PROXY TCP4 from to port port`: each blank that is missing has a byte behind it, and then the line ends.
    let blanks = line.iter().filter(|byte| **byte == b' ').count();
    let fields = 5_usize.checked_sub(blanks).ok_or(Refusal::Malformed)?;
    Ok(2 * fields + 2)
}

/// What stands between `PROXY ` and the line's end.
fn said_v1(text: &str) -> Option<Said> {
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Some(Said::Nothing);
    }
    let mut words = text.split(' ');
    let family = words.next()?;
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (client, local) = (address()?, address()?);
    let mut port = || -> Option<u16> {
        let word = words.next()?;
        let is_canonical = word == "0" || word.bytes().all(|b| b.is_ascii_digit()) && !word.starts_with('0');
        word.parse().ok().filter(|_| is_canonical)
    };
    let (client_port, local_port) = (port()?, port()?);
    let ends =
        Ends { client: SocketAddr::new(client, client_port), local: SocketAddr::new(local, local_port) };
    words.next().is_none().then_some(Said::Ends(ends))
}

fn parse_v2(input: &[u8]) -> Result<Parsed, Refusal> {
    const FIXED: usize = 16;
    // Each byte is judged as soon as it is there, however the header is cut.
    let is_local = match input.get(12) {
        None => return Ok(Parsed::Partial { more: SHORTEST - input.len() }),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Refusal::Malformed),
    };
    let family = match input.get(13) {
        None => return Ok(Parsed::Partial { more: FIXED - input.len() }),
        Some(family @ (0x00 | 0x11 | 0x21 | 0x31)) => *family,
        // Whoever speaks for itself may say anything here.
        Some(_) if is_local => 0x00,
        Some(_) => return Err(Refusal::Malformed),
    };
    let Some(fixed) = input.first_chunk::<FIXED>() else {
        return Ok(Parsed::Partial { more: FIXED - input.len() });
    };
    let size = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let addresses = match family {
        _ if is_local => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => 0,
    };
    if size > MAX_V2 || size < FIXED + addresses {
        return Err(Refusal::Malformed);
    }
    let Some(rest) = input.get(FIXED..size) else {
        return Ok(Parsed::Partial { more: size - input.len() });
    };
    let said = match addresses {
        12 => Said::Ends(ends::<4>(rest).ok_or(Refusal::Malformed)?),
        36 => Said::Ends(ends::<16>(rest).ok_or(Refusal::Malformed)?),
        216 => Said::Unix,
        _ => Said::Nothing,
    };
    Ok(Parsed::Header { size, said })
}

/// Two addresses and two ports.
fn ends<const N: usize>(bytes: &[u8]) -> Option<Ends>
where
    IpAddr: From<[u8; N]>,
{
    let (client, rest) = bytes.split_first_chunk::<N>()?;
    let (local, rest) = rest.split_first_chunk::<N>()?;
    let (client_port, rest) = rest.split_first_chunk::<2>()?;
    let local_port = rest.first_chunk::<2>()?;
    let end = |ip: &[u8; N], port: &[u8; 2]| SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port));
    Some(Ends { client: end(client, client_port), local: end(local, local_port) })
}

impl Introduction {
    /// Appends the header.
    pub fn write(&self, out: &mut Vec<u8>) {
        let ends = self.ends.map(Ends::of_one_family);
        match (self.version, ends) {
            (Version::V1, None) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
            (Version::V1, Some(Ends { client, local })) => {
                let family = if client.is_ipv4() { 4 } else { 6 };
                let (from, to) = (client.ip(), local.ip());
                let ports = (client.port(), local.port());
                write!(out, "PROXY TCP{family} {from} {to} {} {}\r\n", ports.0, ports.1)
                    .expect("memory takes every write");
            }
            // LOCAL: it says nothing of a client, and every receiver has to take it.
            (Version::V2, None) => {
                out.extend_from_slice(SIGNATURE);
                out.extend_from_slice(&[0x20, 0x00, 0, 0]);
            }
            (Version::V2, Some(Ends { client, local })) => {
                out.extend_from_slice(SIGNATURE);
                let (family, size) = if client.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
                out.extend_from_slice(&[0x21, family, 0, size]);
                for end in [client, local] {
                    match end.ip() {
                        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                    }
                }
                out.extend_from_slice(&client.port().to_be_bytes());
                out.extend_from_slice(&local.port().to_be_bytes());
            }
        }
    }
}

impl Ends {
    /// The same with both addresses of one family: a header has room for one.
    fn of_one_family(self) -> Self {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (client, local) = (canonical(self.client), canonical(self.local));
        if client.is_ipv4() == local.is_ipv4() {
            return Self { client, local };
        }
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        Self { client: mapped(client), local: mapped(local) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(client: &str, local: &str) -> Said {
        Said::Ends(Ends {
            client: client.parse().expect("an address"),
            local: local.parse().expect("an address"),
        })
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let size = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family, size[0], size[1]][..], rest].concat()
    }

    #[test]
    fn headers_say_whose_a_connection_is() {
        let four = [192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0, 80];
        let with_tlv = [&four[..], &[0x04, 0, 3, 0, 0, 0]].concat();
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 15], &[1], &[0, 1, 0xff, 0xff]].concat();
        let (of_four, of_six) =
            (said("192.0.2.1:12345", "198.51.100.7:80"), said("[2001:db8::1]:1", "[::1]:65535"));
        let cases: [(&str, Vec<u8>, Said); 11] = [
            ("IPv4", b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\n".into(), of_four),
            ("IPv6", b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n".into(), of_six),
            ("unknown", b"PROXY UNKNOWN\r\n".into(), Said::Nothing),
            ("unknown, with what is to be ignored", b"PROXY UNKNOWN a b c\r\n".into(), Said::Nothing),
            ("version 2, IPv4", v2(0x21, 0x11, &four), of_four),
            ("version 2, IPv6", v2(0x21, 0x21, &six), of_six),
            ("version 2, with an extension", v2(0x21, 0x11, &with_tlv), of_four),
            ("version 2, a Unix socket", v2(0x21, 0x31, &[b'/'; 216]), Said::Unix),
            ("version 2, unknown", v2(0x21, 0x00, b"any"), Said::Nothing),
            ("version 2, a health check", v2(0x20, 0x00, b""), Said::Nothing),
            ("version 2, a health check of a strange family", v2(0x20, 0xff, &four), Said::Nothing),
        ];
        for (why, header, said) in cases {
            let size = header.len();
            let input = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&input), Ok(Parsed::Header { size, said }), "{why}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        use Refusal::{Malformed, Missing};
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 107], b"\r\n".to_vec()].concat();
        let cases: [(&str, Vec<u8>, Refusal); 20] = [
            ("a request", b"GET / HTTP/1.1\r\n\r\n".into(), Missing),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n".into(), Missing),
            ("another case", b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n".into(), Missing),
            ("an empty line first", b"\r\nPROXY UNKNOWN\r\n".into(), Missing),
            ("another family", b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n".into(), Malformed),
            ("an address of the other family", b"PROXY TCP4 ::1 ::1 1 1\r\n".into(), Malformed),
            ("a leading zero", b"PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n".into(), Malformed),
            ("a port's leading zero", b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n".into(), Malformed),
            ("a port's sign", b"PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n".into(), Malformed),
            ("a port that is none", b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n".into(), Malformed),
            ("a word too many", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n".into(), Malformed),
            ("a word too few", b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n".into(), Malformed),
            ("two blanks", b"PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n".into(), Malformed),
            ("a bare line feed", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n".into(), Malformed),
            ("a bare carriage return", b"PROXY UNKNOWN a\rb\r\n".into(), Malformed),
            ("a line that is too long", long, Malformed),
            ("version 3", v2(0x31, 0x11, &[0; 12]), Malformed),
            ("another command", v2(0x22, 0x11, &[0; 12]), Malformed),
            ("datagrams", v2(0x21, 0x12, &[0; 12]), Malformed),
            ("too short for its family", v2(0x21, 0x21, &[0; 12]), Malformed),
        ];
        for (why, input, refusal) in cases {
            assert_eq!(parse(&input), Err(refusal), "{why}");
        }
        assert_eq!(parse(&v2(0x21, 0x11, &[0; 4097])), Err(Malformed), "more than is taken");
    }

    fn end() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    proptest! {
        /// What is written is read again, whatever follows it; and who reads as many bytes as are surely the header's
        /// comes to its end exactly, in a few steps.
        #[test]
        fn what_is_written_is_read(client in end(), local in end(), known: bool, first: bool) {
            let version = if first { Version::V1 } else { Version::V2 };
            let ends = Ends { client, local };
            let mut header = Vec::new();
            Introduction { version, ends: known.then_some(ends) }.write(&mut header);
            let expected = if known { Said::Ends(ends.of_one_family()) } else { Said::Nothing };
            let input = [&header[..], b"PROXY"].concat();
            let (mut read, mut steps) = (0, 0);
            let said = loop {
                match parse(&input[..read]) {
                    Ok(Parsed::Partial { more }) => read += more,
                    Ok(Parsed::Header { size, said }) => {
                        prop_assert_eq!((size, read), (header.len(), header.len()));
                        break said;
                    }
                    Err(refusal) => prop_assert!(false, "{refusal:?} of {:?}", header.escape_ascii().to_string()),
                }
                steps += 1;
                prop_assert!(steps <= 60);
            };
            prop_assert_eq!(said, expected);
        }
    }
}
