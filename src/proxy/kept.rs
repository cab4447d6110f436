//! An answer away from its connection: for a store, or for others who asked the same.
//!
//! It may be used on any worker. What tells apart requests that get different answers at one URL (`Vary`, and
//! `fallback.key`) is kept with it, as the values that its own request had.

use std::any::Any;

use bytes::Bytes;

use crate::http1::field::{Fields, Name};
use crate::http1::head::{RequestHead, ResponseHead};
use crate::policy::freshness::{self, Asked, Control};

/// An answer, complete.
pub struct Kept {
    /// Its status.
    pub status: u16,
    /// Its fields, without those of framing and connection.
    pub fields: Fields,
    /// Its body.
    pub body: Bytes,
    selection: Selection,
    /// What is held as long as it is there.
    _held: Option<Box<dyn Any + Send + Sync>>,
}

/// An answer's head, away from its connection; its body is still to come.
pub struct Draft {
    status: u16,
    fields: Fields,
    selection: Selection,
}

/// Which of the requests for one URL an answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The headers by which they are told apart.
    names: Box<[Box<[u8]>]>,
    /// What they were.
    values: Box<[u8]>,
}

/// What an answer's head says of keeping it.
pub struct Said {
    /// As the rules look at it.
    pub answer: freshness::Answer,
    /// The request's headers on which it depends.
    pub vary: Vec<Box<[u8]>>,
}

impl Draft {
    /// The head of an answer that is for the requests that `selection` tells.
    pub fn new(head: &ResponseHead, selection: Selection) -> Self {
        let mut fields = Fields::default();
        let stays = |name: &[u8]| {
            !name.eq_ignore_ascii_case(b"proxy-authentication-info") && !head.is_connection_option(name)
        };
        for field in head.fields.iter() {
            if !field.known.is_hop_by_hop() && field.known != Name::ContentLength && stays(field.name) {
                fields.push(field.known, field.name, field.value);
            }
        }
        Self { status: head.status, fields, selection }
    }

    /// The answer with its body. `held` lives as long as it.
    pub fn with(self, body: Bytes, held: Option<Box<dyn Any + Send + Sync>>) -> Kept {
        let Self { status, fields, selection } = self;
        Kept { status, fields, body, selection, _held: held }
    }

    /// The memory that it takes, in bytes.
    pub fn size(&self) -> usize {
        let names = self.selection.names.iter().map(|name| name.len() + size_of_val(name)).sum::<usize>();
        self.fields.heap_size() + self.selection.values.len() + names
    }
}

impl Clone for Draft {
    fn clone(&self) -> Self {
        Self { status: self.status, fields: self.fields.clone(), selection: self.selection.clone() }
    }
}

impl Kept {
    /// Whether it is for a request with these fields.
    pub fn suits(&self, request: &Fields) -> bool {
        let Selection { names, values } = &self.selection;
        names.is_empty() || **values == *values_of(names, request)
    }

    /// Whether a 304 with these fields is about it (RFC 9111 §4.3.4). A tag decides alone, and a weak one says too little;
    /// without one a date does.
    pub fn is_confirmed_by(&self, says: &Fields) -> bool {
        let both = |name: &'static [u8]| (says.find(name).next(), self.fields.find(name).next());
        match (both(b"etag"), both(b"last-modified")) {
            ((Some(tag), own), _) => own == Some(tag) && !tag.starts_with(b"W/"),
            (_, (date, own)) => date.is_some() && date == own,
        }
    }

    /// Its head with what that of a 304 says instead (RFC 9111 §3.2), which alone knows how old that is.
    pub fn head_with(&self, says: &ResponseHead) -> ResponseHead {
        let mut head = says.clone();
        head.status = self.status;
        for field in self.fields.iter() {
            let is_age = field.known == Name::Date || field.name.eq_ignore_ascii_case(b"age");
            if !is_age && says.fields.find(field.name).next().is_none() {
                head.fields.push(field.known, field.name, field.value);
            }
        }
        head
    }

    /// Whether it is for the same request as `other`, or they tell requests apart by different headers: then the later
    /// one knows better.
    pub fn replaces(&self, other: &Kept) -> bool {
        self.selection.names != other.selection.names || self.selection.values == other.selection.values
    }
}

impl Selection {
    /// What these headers are in a request.
    pub fn new(mut names: Vec<Box<[u8]>>, request: &Fields) -> Self {
        names.sort_unstable();
        names.dedup();
        let values = values_of(&names, request).into();
        Self { names: names.into(), values }
    }
}

/// The values of the headers `names`, so that no two different lists of them look the same.
pub fn values_of<N: AsRef<[u8]>>(names: &[N], request: &Fields) -> Vec<u8> {
    let mut values = Vec::new();
    for name in names {
        for value in request.find(name.as_ref()) {
            values.extend_from_slice(&(value.len() as u32).to_be_bytes());
            values.extend_from_slice(value);
        }
        values.extend_from_slice(&u32::MAX.to_be_bytes());
    }
    values
}

/// What a request's head says.
pub fn asked(head: &RequestHead, has_body: bool) -> Asked {
    use crate::http1::head::Method;
    let mut asked = Asked {
        is_get: head.method == Method::Get,
        is_head: head.method == Method::Head,
        has_body,
        control: Control::parse(head.fields.all(Name::CacheControl)),
        ..Asked::default()
    };
    for field in head.fields.iter().filter(|field| field.known == Name::Other) {
        let is = |name: &[u8]| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            5 => asked.has_range |= is(b"range"),
            6 => asked.has_credentials |= is(b"cookie"),
            8 => {
                asked.has_precondition |= is(b"if-match");
                asked.is_conditional |= is(b"if-range");
            }
            13 => {
                asked.has_credentials |= is(b"authorization");
                asked.is_conditional |= is(b"if-none-match");
            }
            17 => asked.is_conditional |= is(b"if-modified-since"),
            19 => asked.has_precondition |= is(b"if-unmodified-since"),
            _ => {}
        }
    }
    asked
}

/// What an answer's head says.
pub fn said(head: &ResponseHead) -> Said {
    let fields = &head.fields;
    let mut answer = freshness::Answer {
        status: head.status,
        control: Control::parse(fields.all(Name::CacheControl)),
        date: fields.get(Name::Date).and_then(freshness::date),
        ..freshness::Answer::default()
    };
    let (mut vary, mut is_coded) = (Vec::new(), false);
    for field in fields.iter().filter(|field| field.known == Name::Other) {
        let is = |name: &[u8]| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            3 if is(b"age") => answer.age = answer.age.max(freshness::seconds(field.value)),
            4 if is(b"vary") => vary.push(field.value),
            7 if is(b"expires") => {
                let expires = freshness::date(field.value).unwrap_or(0);
                answer.expires = Some(answer.expires.map_or(expires, |known| known.min(expires)));
            }
            10 | 11 => answer.sets_cookie |= is(b"set-cookie") || is(b"set-cookie2"),
            16 => is_coded |= is(b"content-encoding") && !field.value.eq_ignore_ascii_case(b"identity"),
            _ => {}
        }
    }
    // An upstream that forgets to say so would give compressed bytes to those who cannot read them.
    let vary = vary.into_iter().chain(is_coded.then_some(&b"accept-encoding"[..]));
    let vary = freshness::vary(vary);
    answer.varies_by_all = vary.is_none();
    Said { answer, vary: vary.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in list {
            fields.push(Name::of(name.as_bytes()), name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn names(list: &[&str]) -> Vec<Box<[u8]>> {
        list.iter().map(|name| name.as_bytes().into()).collect()
    }

    #[test]
    fn an_answer_is_for_those_who_say_the_same() {
        let mut head = ResponseHead::default();
        head.status = 200;
        let own = fields(&[("Accept-Language", "de"), ("accept", "a"), ("accept", "b")]);
        let kept = |by: &[&str]| Draft::new(&head, Selection::new(names(by), &own)).with(Bytes::new(), None);
        type Case = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)], bool);
        let cases: [Case; 8] = [
            ("it depends on nothing", &[], &[], true),
            ("the same value", &["accept-language"], &[("accept-language", "de")], true),
            ("another value", &["accept-language"], &[("accept-language", "en")], false),
            ("no value", &["accept-language"], &[], false),
            ("none, as it had none", &["origin"], &[], true),
            ("one, as it had none", &["origin"], &[("origin", "")], false),
            ("two, as it had", &["accept"], &[("Accept", "a"), ("x", "y"), ("Accept", "b")], true),
            ("two in one", &["accept"], &[("accept", "ab")], false),
        ];
        for (why, by, request, suits) in cases {
            assert_eq!(kept(by).suits(&fields(request)), suits, "{why}");
        }
    }

    #[test]
    fn what_requests_and_answers_say_is_found_by_name() {
        let mut head = RequestHead::new();
        for (name, value) in [
            ("Cookie", "a=b"),
            ("Range", "bytes=0-1"),
            ("If-None-Match", "*"),
            ("If-Match", "*"),
            ("Cache-Control", "no-cache"),
        ] {
            head.fields.push(Name::of(name.as_bytes()), name.as_bytes(), value.as_bytes());
        }
        let found = asked(&head, false);
        assert!(found.has_credentials && found.has_range && found.is_conditional && found.has_precondition);
        assert!(found.control.no_cache && !found.is_get && !found.has_body);
        for name in ["authorization", "Authorization", "cookie"] {
            let mut head = RequestHead::new();
            head.fields.push(Name::of(name.as_bytes()), name.as_bytes(), b"x");
            assert!(asked(&head, false).has_credentials, "{name}");
        }
        for name in ["if-modified-since", "If-Range"] {
            let mut head = RequestHead::new();
            head.fields.push(Name::of(name.as_bytes()), name.as_bytes(), b"x");
            assert!(asked(&head, false).is_conditional, "{name}");
        }

        let mut head = ResponseHead::default();
        head.status = 200;
        head.fields = fields(&[
            ("Age", "7"),
            ("Vary", "Origin"),
            ("Set-Cookie", "a=b"),
            ("Content-Encoding", "gzip"),
            ("Expires", "0"),
            ("Date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("Cache-Control", "max-age=3"),
        ]);
        let said = said(&head);
        assert_eq!(said.vary, names(&["accept-encoding", "origin"]));
        assert!(said.answer.sets_cookie && !said.answer.varies_by_all);
        assert_eq!(
            (said.answer.age, said.answer.expires, said.answer.date),
            (Some(7), Some(0), Some(784_111_777))
        );
        assert_eq!(said.answer.control.max_age, Some(3));
    }

    #[test]
    fn what_confirms_an_answer_names_its_tag_or_its_date() {
        let (tag, weak, date) = (("ETag", "\"1\""), ("etag", "W/\"1\""), ("last-modified", "Sun"));
        let (other_tag, other_date) = (("etag", "\"2\""), ("Last-Modified", "Mon"));
        let cases = [
            // why                        kept                 says                   confirms
            ("the tag", vec![tag], vec![tag], true),
            ("whatever the date", vec![tag, date], vec![tag, other_date], true),
            ("another one", vec![tag], vec![other_tag], false),
            ("whatever the date", vec![tag, date], vec![other_tag, date], false),
            ("a weak one", vec![weak], vec![weak], false),
            ("one of what had none", vec![date], vec![tag, date], false),
            ("the date", vec![date], vec![date], true),
            ("of what had a tag too", vec![tag, date], vec![date], true),
            ("another date", vec![date], vec![other_date], false),
            ("nothing is named", vec![], vec![], false),
        ];
        for (why, own, says, confirms) in cases {
            let mut head = ResponseHead::default();
            head.fields = fields(&own);
            let kept = Draft::new(&head, Selection::new(Vec::new(), &Fields::default()));
            let kept = kept.with(Bytes::new(), None);
            assert_eq!(kept.is_confirmed_by(&fields(&says)), confirms, "{why}: {own:?} {says:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_connection_is_not_kept() {
        let mut head = ResponseHead::default();
        head.fields = fields(&[
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
            ("etag", "\"a\""),
        ]);
        let kept = Draft::new(&head, Selection::new(Vec::new(), &Fields::default())).with(Bytes::new(), None);
        let names: Vec<_> = kept.fields.iter().map(|field| field.name.to_vec()).collect();
        assert_eq!(names, [b"etag".to_vec()]);
    }
}
