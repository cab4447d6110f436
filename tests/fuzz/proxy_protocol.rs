//! Target: any bytes as a header of the PROXY protocol. The first byte steers how the rest is cut.

use outrigger::transport::proxy_protocol::{Introduction, Parsed, Said, Version, parse};

use super::pieces::{ends, steer};

/// Runs the target on one input; panics if something that must hold does not.
pub fn proxy_protocol(data: &[u8]) {
    let Some(([cuts], input)) = steer(data) else { return };
    let whole = parse(input);

    // However it is cut: the same in the end, and a refusal is never taken back.
    let mut by_piece = Ok(Parsed::Partial { more: 1 });
    for end in ends(input.len(), cuts) {
        by_piece = parse(&input[..end]);
        if !matches!(by_piece, Ok(Parsed::Partial { .. })) {
            break;
        }
    }
    match by_piece {
        Ok(Parsed::Partial { .. }) if input.is_empty() => {}
        outcome => assert_eq!(outcome, whole, "in pieces it is the same"),
    }

    // Who reads only what surely belongs to the header never reads behind it.
    let mut read = 0;
    while let Ok(Parsed::Partial { more }) = parse(&input[..read]) {
        assert!(more > 0 && more <= 4112, "{more} bytes are wanted");
        if read + more > input.len() {
            return;
        }
        read += more;
    }
    match parse(&input[..read]) {
        Ok(Parsed::Header { size, said }) => {
            assert_eq!(size, read, "all of it, and nothing else");
            assert!(size <= 4112);
            accepted(said);
        }
        outcome => assert_eq!(outcome, whole, "what is wrong is wrong in steps too"),
    }
}

/// What a header says can be said again.
fn accepted(said: Said) {
    let Said::Ends(ends) = said else { return };
    for version in [Version::V1, Version::V2] {
        let mut header = Vec::new();
        Introduction { version, ends: Some(ends) }.write(&mut header);
        let Ok(Parsed::Header { size, said: Said::Ends(again) }) = parse(&header) else {
            panic!("what is written is read: {}", header.escape_ascii());
        };
        assert_eq!(size, header.len());
        let canonical = |end: std::net::SocketAddr| (end.ip().to_canonical(), end.port());
        assert_eq!(canonical(again.client), canonical(ends.client));
        assert_eq!(canonical(again.local), canonical(ends.local));
    }
}
