//! Any bytes as a configuration file: read or explained, never a panic, and every problem lies in the file.

use outrigger::config::{Problems, parse};

/// The first two bytes steer what the environment holds; the rest is the file.
pub fn config(data: &[u8]) {
    let Some((steer, bytes)) = data.split_at_checked(2) else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let environment = |_: &str| match steer[0] % 4 {
        0 => None,
        1 => Some(String::new()),
        2 => Some(steer[1].to_string()),
        _ => Some("\u{e9}${X}\"]\n[".to_owned()),
    };
    match parse(text, "fuzz.toml", &environment) {
        Ok(loaded) => {
            assert!(!loaded.config.listener.is_empty() && !loaded.config.upstream.is_empty());
            for listener in &loaded.config.listener {
                let arms = listener.route.iter().flat_map(|route| route.arms());
                let named = arms.map(|arm| arm.upstream).chain(listener.upstream.clone());
                named.for_each(|name| assert!(loaded.config.upstream.contains_key(&name)));
            }
        }
        Err(Problems(problems)) => {
            assert!(!problems.is_empty());
            for problem in &problems {
                assert!(text.get(problem.span.clone()).is_some(), "{problem:?}");
                assert!(!problem.render(false).is_empty());
            }
        }
    }
}
