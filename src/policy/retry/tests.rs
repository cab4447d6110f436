use proptest::prelude::*;

use super::*;

fn rules() -> Rules {
    Rules::new(&Settings::default())
}

/// The first attempt of a GET was answered 503, and there is another endpoint.
const PLAIN: Failed = Failed {
    cause: Cause::Status(503),
    unprocessed: false,
    method_ok: true,
    replayable: Ok(()),
    attempt: 1,
    caller_attempt: 0,
    retry_after: None,
    pushback_never: false,
    left: Duration::from_secs(10),
    other_endpoint: true,
    endpoints: 2,
    all_unprocessed: false,
    free_used: false,
};

/// Its connect was refused instead.
const REFUSED: Failed =
    Failed { cause: Cause::Reason(Reason::ConnectError), unprocessed: true, all_unprocessed: true, ..PLAIN };

/// The pooled connection was closed before a byte was written.
const STALE: Failed = Failed { cause: Cause::Reason(Reason::UpstreamReset), ..REFUSED };

#[test]
fn what_follows_a_failed_attempt() {
    const PAID: Decision = Decision::Retry { pays: true, at_once: false };
    const FREE: Decision = Decision::Retry { pays: false, at_once: true };
    const FREE_AFTER_BACKOFF: Decision = Decision::Retry { pays: false, at_once: false };
    let skip = Decision::Skip;
    let second = Duration::from_secs(1);
    let only = |failed| Failed { other_endpoint: false, endpoints: 1, ..failed };
    let cases = [
        ("a status that is retried", PLAIN, PAID),
        ("the only endpoint: the same one, after back-off", only(PLAIN), PAID),
        ("a status that is not", Failed { cause: Cause::Status(404), ..PLAIN }, Decision::Answer),
        ("501 is not 500", Failed { cause: Cause::Status(501), ..PLAIN }, Decision::Answer),
        ("gRPC says UNAVAILABLE", Failed { cause: Cause::Grpc(14), ..PLAIN }, PAID),
        ("gRPC says NOT_FOUND", Failed { cause: Cause::Grpc(5), ..PLAIN }, Decision::Answer),
        ("a method that must not be sent twice", Failed { method_ok: false, ..PLAIN }, skip(Skip::Method)),
        (
            "a body that cannot",
            Failed { replayable: Err(Skip::BodyTooLarge), ..PLAIN },
            skip(Skip::BodyTooLarge),
        ),
        (
            "its memory is used up",
            Failed { replayable: Err(Skip::BufferMemory), ..PLAIN },
            skip(Skip::BufferMemory),
        ),
        (
            "bytes of the answer went out",
            Failed { replayable: Err(Skip::HeadSent), ..PLAIN },
            skip(Skip::HeadSent),
        ),
        ("the caller retries", Failed { caller_attempt: 1, ..PLAIN }, skip(Skip::CallerRetries)),
        ("the third of four", Failed { attempt: 3, ..PLAIN }, PAID),
        ("the fourth of four", Failed { attempt: 4, ..PLAIN }, skip(Skip::Attempts)),
        ("do not come back", Failed { pushback_never: true, ..PLAIN }, skip(Skip::Pushback)),
        ("come back in time", Failed { retry_after: Some(second), ..PLAIN }, PAID),
        (
            "come back too late",
            Failed { retry_after: Some(second), left: second / 2, ..PLAIN },
            skip(Skip::Pushback),
        ),
        ("no time left", Failed { left: Duration::from_millis(4), ..PLAIN }, skip(Skip::Deadline)),
        ("refused: another endpoint, free and at once", REFUSED, FREE),
        ("whatever the method", Failed { method_ok: false, ..REFUSED }, FREE),
        ("even after the free one", Failed { free_used: true, ..REFUSED }, FREE),
        ("but it counts as an attempt", Failed { attempt: 4, ..REFUSED }, skip(Skip::Attempts)),
        (
            "and a caller that retries does it itself",
            Failed { caller_attempt: 2, ..REFUSED },
            skip(Skip::CallerRetries),
        ),
        ("the only endpoint refused: free once, after back-off", only(REFUSED), FREE_AFTER_BACKOFF),
        ("from then on it pays", Failed { free_used: true, ..only(REFUSED) }, PAID),
        (
            "each of several has refused",
            Failed { attempt: 2, other_endpoint: false, ..REFUSED },
            skip(Skip::Attempts),
        ),
        (
            "one of them has answered 503 before",
            Failed { attempt: 2, other_endpoint: false, all_unprocessed: false, ..REFUSED },
            PAID,
        ),
        (
            "a refused connect that the list leaves out",
            Failed { cause: Cause::Reason(Reason::DnsError), ..REFUSED },
            Decision::Answer,
        ),
        ("a stale connection: a new one at once", only(STALE), FREE),
        ("whatever the method", Failed { method_ok: false, ..only(STALE) }, FREE),
        ("whoever retries besides", Failed { caller_attempt: 1, ..only(STALE) }, FREE),
        ("even on the last attempt", Failed { attempt: 4, ..only(STALE) }, FREE),
        ("though every endpoint was tried", Failed { attempt: 2, other_endpoint: false, ..STALE }, FREE),
        ("but once", Failed { attempt: 4, free_used: true, ..STALE }, skip(Skip::Attempts)),
        ("a reset after bytes were written is no such thing", Failed { unprocessed: false, ..STALE }, PAID),
        (
            "nor may a POST be sent again then",
            Failed { unprocessed: false, method_ok: false, ..STALE },
            skip(Skip::Method),
        ),
    ];
    for (why, failed, decision) in cases {
        assert_eq!(decide(&rules(), &failed), decision, "{why}");
    }
}

#[test]
fn a_caller_that_retries_is_respected_only_if_the_settings_say_so() {
    let rules = Rules::new(&Settings { respect_caller_retries: false, ..Settings::default() });
    let decision = decide(&rules, &Failed { caller_attempt: 3, ..PLAIN });
    assert_eq!(decision, Decision::Retry { pays: true, at_once: false });
}

#[test]
fn the_words_of_on_are_reasons_statuses_and_grpc_statuses() {
    let on = ["5xx", "!501", "429", "dns_error", "grpc:ABORTED"].map(|word| word.parse().expect(word));
    let rules = Rules::new(&Settings { on: on.to_vec(), ..Settings::default() });
    let cases = [
        (Cause::Status(502), true),
        (Cause::Status(501), false),
        (Cause::Status(429), true),
        (Cause::Reason(Reason::DnsError), true),
        (Cause::Reason(Reason::UpstreamReset), false),
        (Cause::Grpc(10), true),
        (Cause::Grpc(14), false),
        (Cause::Grpc(255), false),
    ];
    for (cause, retried) in cases {
        assert_eq!(rules.retries_on(cause), retried, "{}", cause.label());
    }
}

#[test]
fn a_request_may_be_sent_twice_if_its_method_says_so() {
    let settings = Settings {
        grpc_methods: ["shop.Catalog/Get", "shop.Catalog/List*", "shop.Search/*"]
            .map(|word| word.parse().expect(word))
            .to_vec(),
        ..Settings::default()
    };
    let plain = Rules::new(&settings);
    let keyed = Rules::new(&Settings { idempotency_key: true, ..settings });
    type Row<'a> = (&'a str, &'a Rules, &'a str, bool, Option<&'a str>, bool);
    let cases: [Row<'_>; 14] = [
        // why                                        rules    method   key    grpc path                      twice
        ("idempotent", &plain, "GET", false, None, true),
        ("not idempotent", &plain, "POST", false, None, false),
        ("methods are told apart by case", &plain, "get", false, None, false),
        ("a key that nobody honours", &plain, "POST", true, None, false),
        ("a key that is honoured", &keyed, "POST", true, None, true),
        ("honoured, but there is none", &keyed, "POST", false, None, false),
        ("a gRPC method that is named", &plain, "POST", false, Some("/shop.Catalog/Get"), true),
        ("a longer one", &plain, "POST", false, Some("/shop.Catalog/GetAll"), false),
        ("one that begins so", &plain, "POST", false, Some("/shop.Catalog/ListAll"), true),
        ("all of a service", &plain, "POST", false, Some("/shop.Search/Find"), true),
        ("another service", &plain, "POST", false, Some("/shop.Searches/Find"), false),
        ("something below it", &plain, "POST", false, Some("/shop.Search/Find/More"), false),
        ("without its slash", &plain, "POST", false, Some("shop.Search/Find"), false),
        ("of gRPC the method says nothing", &plain, "GET", false, Some("/shop.Cart/Add"), false),
    ];
    for (why, rules, method, key, path, twice) in cases {
        assert_eq!(rules.method_allows(method.as_bytes(), key, path.map(str::as_bytes)), twice, "{why}");
    }
}

#[test]
fn every_skip_is_at_its_index_with_a_label_of_its_own() {
    for (index, skip) in Skip::ALL.into_iter().enumerate() {
        assert_eq!(skip.index(), index, "{}", skip.label());
        assert_eq!(Skip::ALL.iter().filter(|other| other.label() == skip.label()).count(), 1);
    }
}

fn failed() -> impl Strategy<Value = Failed> {
    let cause = prop_oneof![
        prop::sample::select(Reason::ALL.to_vec()).prop_map(Cause::Reason),
        (100u16..600).prop_map(Cause::Status),
        (0u8..17).prop_map(Cause::Grpc),
    ];
    let replayable = prop_oneof![
        3 => Just(Ok(())),
        1 => prop::sample::select(Skip::ALL.to_vec()).prop_map(Err),
    ];
    let counts = (1u32..8, 0u32..2, 0u32..4);
    let times = (prop::option::of(0u64..2000), 0u64..2000);
    (cause, replayable, counts, times, any::<[bool; 6]>()).prop_map(
        |(cause, replayable, (attempt, caller_attempt, endpoints), (after, left), flags)| {
            let [unprocessed, method_ok, pushback_never, other_endpoint, all_unprocessed, free_used] = flags;
            Failed {
                cause,
                unprocessed,
                method_ok,
                replayable,
                attempt,
                caller_attempt,
                retry_after: after.map(Duration::from_millis),
                pushback_never,
                left: Duration::from_millis(left),
                other_endpoint: other_endpoint && endpoints > 1,
                endpoints,
                all_unprocessed: all_unprocessed && unprocessed,
                free_used,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What never happens, whatever failed.
    #[test]
    fn no_retry_is_unsafe_unbounded_or_free_for_ever(failed in failed()) {
        let decision = decide(&rules(), &failed);
        if let Decision::Retry { pays, at_once } = decision {
            prop_assert!(failed.replayable.is_ok(), "what cannot be sent again is not");
            prop_assert!(failed.unprocessed || failed.method_ok, "a POST that may have been processed is not");
            prop_assert!(failed.unprocessed || pays, "only what was surely not processed is free");
            prop_assert!(!pays || !at_once, "what pays waits its back-off");
            prop_assert!(failed.retry_after.is_none_or(|after| after <= failed.left), "it can still finish");
            prop_assert!(!failed.pushback_never);
            prop_assert!(failed.attempt < 4 || (!pays && !failed.free_used), "attempts are bounded, but for a free one");
            prop_assert!(pays || failed.other_endpoint || !failed.free_used, "on one endpoint, free once");
        }
    }
}
