//! Words of a closed list in the configuration: what to say when one is not in it.

/// What is wrong with `word` and what to write: the nearest of `known`, or else all of them.
pub(super) fn unknown(word: &str, what: &str, known: impl Iterator<Item = &'static str> + Clone) -> String {
    let distance = |candidate: &str| strsim::osa_distance(&word.to_lowercase(), &candidate.to_lowercase());
    let nearest = known.clone().min_by_key(|candidate| distance(candidate));
    match nearest.filter(|nearest| distance(nearest) <= nearest.len() / 3) {
        Some(nearest) => format!("{word:?} is not {what}; did you mean {nearest:?}?"),
        None => {
            let known: Vec<_> = known.map(|word| format!("{word:?}")).collect();
            format!("{word:?} is not {what}; write one of {}", known.join(", "))
        }
    }
}

/// Both ways between a value and its text, for serde, which asks for these traits.
macro_rules! as_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}
pub(super) use as_text;

#[cfg(test)]
mod tests {
    use super::unknown;

    #[test]
    fn a_slip_names_the_nearest_word_and_nonsense_names_all() {
        let known = ["UNAVAILABLE", "INTERNAL"].into_iter();
        let cases = [
            // why                          word           what to write
            ("a letter is missing", "UNAVAILBLE", "did you mean \"UNAVAILABLE\"?"),
            ("the case is wrong", "internal", "did you mean \"INTERNAL\"?"),
            ("nothing is near", "teapot", "write one of \"UNAVAILABLE\", \"INTERNAL\""),
        ];
        for (why, word, cure) in cases {
            let message = unknown(word, "a status", known.clone());
            assert!(message.ends_with(cure), "{why}: {message}");
        }
    }
}
