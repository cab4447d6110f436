//! Heads between HTTP/2 and the one kind that the path knows.
//!
//! What HTTP/1.1 could not say without doubt is refused before it is written (`RequestHead::build`), so nothing can
//! be smuggled to an upstream. h2 has refused by then, with a reset: pseudo-fields that are unknown, missing, twice,
//! or behind others; names with upper case; fields about the connection; DATA that is not what `Content-Length` says.

use bytes::Bytes;
use h2::RecvStream;
use http::request::Parts;

use crate::http1::field::Fields;
use crate::http1::head::{Framing, Refusal, RequestHead, ResponseHead};
use crate::reason::{Error, Reason};

/// The head of a request as HTTP/1.1 would have said it.
///
/// # Errors
/// [`Reason::BadRequest`], [`Reason::MethodNotAllowed`].
pub fn translate(head: &mut RequestHead, parts: &Parts, body: &RecvStream) -> Result<(), Error> {
    let framing = match parts.headers.get(http::header::CONTENT_LENGTH) {
        Some(value) => {
            let length = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = length.and_then(|text| text.parse().ok());
            Framing::Length(length.ok_or_else(|| Error::new(Reason::BadRequest, "malformed Content-Length"))?)
        }
        None if body.is_end_stream() => Framing::None,
        None => Framing::Chunked,
    };
    let mut hosts = parts.headers.get_all(http::header::HOST).iter().map(http::HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::new(Reason::BadRequest, "more than one Host"));
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.eq_ignore_ascii_case(authority)
    {
        return Err(Error::new(Reason::BadRequest, ":authority and Host differ"));
    }
    let authority = authority.or(host).unwrap_or_default();
    let path = match parts.uri.path_and_query() {
        Some(path) => path.as_str(),
        None if parts.method == http::Method::CONNECT => {
            return Err(Error::new(Reason::MethodNotAllowed, "CONNECT and TRACE are not proxied"));
        }
        None => "/",
    };
    let refused = |refusal: Refusal| Error::new(refusal.reason, refusal.detail);
    head.build(parts.method.as_str().as_bytes(), path.as_bytes(), authority, framing).map_err(refused)?;
    // Cookies may come in crumbs; HTTP/1.1 has them in one field (RFC 9113 §8.2.3).
    let mut cookies = Vec::new();
    for (name, value) in &parts.headers {
        if name == http::header::COOKIE {
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes());
            continue;
        }
        head.build_field(name.as_str().as_bytes(), value.as_bytes()).map_err(refused)?;
    }
    if !cookies.is_empty() {
        head.build_field(b"cookie", &cookies).map_err(refused)?;
    }
    Ok(())
}

/// The size of a head as HTTP/2 counts it (RFC 9113 §6.5.2); method and scheme are short and left out.
pub fn size(parts: &Parts) -> usize {
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    fields.sum::<usize>() + path + authority
}

/// An answer's head.
pub fn response(status: u16, fields: http::HeaderMap) -> http::Response<()> {
    let mut response = http::Response::new(());
    // A status above 599 is no status, but three digits are what both protocols write.
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    *response.headers_mut() = fields;
    response
}

/// The fields of an upstream's head that go on to the client.
pub fn of_upstream(head: &ResponseHead) -> http::HeaderMap {
    fields(&head.fields, |name| head.is_connection_option(name))
}

/// What may stand in HTTP/2; names and values have been checked by the codec. `is_option`: whether `Connection` names
/// the field.
pub fn fields(fields: &Fields, is_option: impl Fn(&[u8]) -> bool) -> http::HeaderMap {
    // PERF: the values stand in one piece that they share, instead of an allocation for each.
    let mut text = Vec::with_capacity(fields.iter().map(|field| field.value.len()).sum());
    fields.iter().for_each(|field| text.extend_from_slice(field.value));
    let text = Bytes::from(text);
    let mut place = 0;
    let mut headers = http::HeaderMap::with_capacity(fields.len());
    for field in fields.iter() {
        let value = place..place + field.value.len();
        place = value.end;
        if field.known.is_hop_by_hop() || is_option(field.name) {
            continue;
        }
        let name = http::HeaderName::from_bytes(field.name);
        let value = http::HeaderValue::from_maybe_shared(text.slice(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::field::Name;

    #[test]
    fn fields_of_the_connection_do_not_reach_http2() {
        let mut all = Fields::default();
        for (name, value) in [
            ("connection", "x-private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("etag", "a"),
            ("x-b", "c"),
        ] {
            all.push(Name::of(name.as_bytes()), name.as_bytes(), value.as_bytes());
        }
        let headers = fields(&all, |name| name == b"x-private");
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["etag", "x-b"]);
        assert_eq!((&headers["etag"], &headers["x-b"]), (&"a".parse().unwrap(), &"c".parse().unwrap()));
    }
}
