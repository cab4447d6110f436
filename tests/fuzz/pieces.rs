//! What the codec's targets share: cutting an input into pieces.

/// Takes `N` bytes that steer a target off the front of its input.
pub fn steer<const N: usize>(data: &[u8]) -> Option<([u8; N], &[u8])> {
    data.split_first_chunk().map(|(first, rest)| (*first, rest))
}

/// The ends of the pieces of an input of `length` bytes: steps of 1 to 16 bytes that `pattern` chooses, the last one
/// at the end of the input. With pattern 0 each byte is a piece.
pub fn ends(length: usize, pattern: u8) -> impl Iterator<Item = usize> {
    let (mut end, mut state) = (0, usize::from(pattern));
    std::iter::from_fn(move || {
        if end >= length {
            return None;
        }
        let step = if pattern == 0 { 1 } else { 1 + state % 16 };
        state = state * 31 % 251;
        end = (end + step).min(length);
        Some(end)
    })
}
