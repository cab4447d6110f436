//! What the policies call things, for the series of telemetry, which does not know them.

use crate::policy::retry::{Cause, Skip};
use crate::policy::{failure, hedge, retry};
use crate::reason::Reason;
use crate::telemetry::metrics::Words;

/// The statuses that retries are counted for by themselves.
const STATUSES: [u16; 9] = [408, 425, 429, 500, 501, 502, 503, 504, 505];

/// Why a retry was not made, or a hedge not sent, although one was due: shadowed. Follows the words of the skips.
const SHADOW: &str = "shadow";

/// The words, in the order of [`cause`] and [`skip`].
pub fn words() -> Words {
    let reasons = Reason::ALL.into_iter().map(Reason::label);
    let statuses = ["408", "425", "429", "500", "501", "502", "503", "504", "505", "other"];
    let grpc = (0..=16).map(failure::grpc_name);
    Words {
        retries: reasons.chain(statuses).chain(grpc).collect(),
        retries_skipped: Skip::ALL.into_iter().map(Skip::label).chain([SHADOW]).collect(),
        hedges_skipped: hedge::Skip::ALL.into_iter().map(hedge::Skip::label).chain([SHADOW]).collect(),
    }
}

/// The place of the series of retries for this cause.
pub fn cause(cause: Cause) -> usize {
    match cause {
        Cause::Reason(reason) => reason.index(),
        Cause::Status(status) => {
            let place = STATUSES.iter().position(|known| *known == status);
            Reason::ALL.len() + place.unwrap_or(STATUSES.len())
        }
        Cause::Grpc(code) => Reason::ALL.len() + STATUSES.len() + 1 + usize::from(code.min(16)),
    }
}

/// The place of the series of retries that were not made because of `skip`; none: they were shadowed.
pub fn skip(skip: Option<Skip>) -> usize {
    skip.map_or(retry::Skip::ALL.len(), Skip::index)
}

/// The place of the series of hedges that were not sent because of `skip`; none: they were shadowed.
pub fn hedge_skip(skip: Option<hedge::Skip>) -> usize {
    skip.map_or(hedge::Skip::ALL.len(), hedge::Skip::index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_word() {
        let words = words();
        for reason in Reason::ALL {
            assert_eq!(words.retries[cause(Cause::Reason(reason))], reason.label());
        }
        assert_eq!(words.retries[cause(Cause::Status(503))], "503");
        assert_eq!(words.retries[cause(Cause::Status(599))], "other");
        for code in 0..=16 {
            assert_eq!(words.retries[cause(Cause::Grpc(code))], failure::grpc_name(code));
        }
        assert_eq!(words.retries_skipped[skip(None)], SHADOW);
        assert_eq!(words.hedges_skipped[hedge_skip(None)], SHADOW);
        for skip in hedge::Skip::ALL {
            assert_eq!(words.hedges_skipped[hedge_skip(Some(skip))], skip.label());
        }
    }
}
