//! Both ends over a pair of sockets: who is let in, who is refused, and what is said about it.

use std::rc::Rc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::client::{self, Client};
use super::server::{self, Denied, Server};
use super::testing::{Authority, Folder, Leaf};
use crate::http1::connection::Connection;
use crate::transport::Transport;

const ALPN: &[&[u8]] = &[b"http/1.1"];

fn client(settings: serde_json::Value) -> Client {
    let settings: client::Settings =
        serde_json::from_value(settings).unwrap_or_else(|error| panic!("{error}"));
    Client::new(&settings, ALPN)
}

fn server(settings: serde_json::Value) -> Server {
    let settings: server::Settings =
        serde_json::from_value(settings).unwrap_or_else(|error| panic!("{error}"));
    Server::new(&settings, ALPN)
}

/// Both ends of a handshake that asks for `name`; none where the server lets nobody in, with what the client says.
async fn handshake(
    client: &Client,
    server: &Server,
    name: &str,
) -> Result<(Transport, Transport, bool), String> {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    let (near, far) = tokio::join!(client.connect(0, name, near.into(), false), server.accept(far.into()));
    let near = near?;
    let far = far.map_err(in_words)?;
    Ok((near, far.stream, far.resumed))
}

fn in_words(denied: Denied) -> String {
    match denied {
        Denied::Left => "it left".to_owned(),
        Denied::Failed(why) => why,
    }
}

#[tokio::test]
async fn a_server_is_refused_for_a_reason_that_is_told() {
    let folder = Folder::new();
    let (authority, stranger) = (Authority::new("Test CA"), Authority::new("Stranger"));
    let ca = folder.write("ca.pem", authority.pem());
    let names = ["app.internal", "*.pods.internal", "10.0.0.1", "spiffe://test/app"];
    let good = authority.issue_for(&names);
    let old = authority.issue(&Leaf::of(&names).expired());
    let (strange, own) = (stranger.issue_for(&names), authority.own());
    let trust = json!({ "ca": ca });
    let pinned = |san: &[&str]| json!({ "ca": ca, "san": san });
    #[rustfmt::skip]
    let cases = [
        // why                              the server has  the client says                       and asks for        what it comes to
        ("all is well",                     &good,    trust.clone(),                        "app.internal",     ""),
        ("by a wildcard",                   &good,    trust.clone(),                        "a.pods.internal",  ""),
        ("by an address",                   &good,    trust.clone(),                        "10.0.0.1",         ""),
        ("another name",                    &good,    trust.clone(),                        "other.internal",   "the server's certificate \"app.internal\" (issued by \"Test CA\") is not for \"other.internal\": it has app.internal, *.pods.internal, 10.0.0.1, spiffe://test/app"),
        ("another name is asked for",       &good,    json!({ "ca": ca, "server_name": "app.internal" }), "other.internal", ""),
        ("expired",                         &old,     trust.clone(),                        "app.internal",     "the server's certificate \"app.internal\" (issued by \"Test CA\") expired on 2021-01-01"),
        ("unknown authority",               &strange, trust.clone(),                        "app.internal",     "the server's certificate \"app.internal\" (issued by \"Stranger\") comes from an unknown authority"),
        ("an authority's own certificate",  &own,     trust.clone(),                        "app.internal",     "the server's certificate \"Test CA\" (issued by \"Test CA\") is that of an authority, which a server must not show as its own"),
        ("an allowed workload",             &good,    pinned(&["spiffe://test/app"]),       "other.internal",   ""),
        ("one of those allowed",            &good,    pinned(&["b.internal", "app.internal"]), "other.internal", ""),
        ("none of those allowed",           &good,    pinned(&["spiffe://test/b"]),         "app.internal",     "the server's certificate \"app.internal\" (issued by \"Test CA\") has none of the allowed names (spiffe://test/b): it has app.internal, *.pods.internal, 10.0.0.1, spiffe://test/app"),
        ("allowed, but not trusted",        &strange, pinned(&["spiffe://test/app"]),       "app.internal",     "the server's certificate \"app.internal\" (issued by \"Stranger\") comes from an unknown authority"),
        ("allowed, but expired",            &old,     pinned(&["spiffe://test/app"]),       "app.internal",     "the server's certificate \"app.internal\" (issued by \"Test CA\") expired on 2021-01-01"),
        ("a name that none can have",       &good,    trust.clone(),                        "a b",              "\"a b\" is no name that a certificate can have; set tls.server_name"),
    ];
    for (why, issued, settings, name, expected) in cases {
        let (cert, key) = folder.write_pair("server", issued);
        let server = server(json!({ "cert": cert, "key": key }));
        let said = handshake(&client(settings), &server, name).await.err().unwrap_or_default();
        assert_eq!(said, expected, "{why}");
    }
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let folder = Folder::new();
    let authority = Authority::new("Test CA");
    let ca = folder.write("ca.pem", authority.pem());
    let pair = |name: &str, names: &[&str]| {
        let (cert, key) = folder.write_pair(name, &authority.issue_for(names));
        json!({ "cert": cert, "key": key })
    };
    let mut settings = pair("first", &["first.test"]);
    settings["certificates"] =
        json!([pair("star", &["*.second.test"]), pair("exact", &["a.second.test", "third.test"])]);
    let server = server(settings);
    let cases = [
        // asked for        what the chosen certificate has
        ("first.test", "first.test"),
        ("a.second.test", "a.second.test"),
        ("b.second.test", "*.second.test"),
        ("B.Second.Test", "*.second.test"),
        ("THIRD.test", "third.test"),
        ("unknown.test", "first.test"),
        ("10.0.0.1", "first.test"),
    ];
    for (asked, has) in cases {
        // Whatever comes is allowed if it has this name, and refused otherwise.
        let pin =
            if let Some(parent) = has.strip_prefix("*.") { format!("x.{parent}") } else { has.to_owned() };
        let client = client(json!({ "ca": ca, "san": [pin] }));
        assert_eq!(handshake(&client, &server, asked).await.err(), None, "{asked}");
    }
}

#[tokio::test]
async fn clients_need_a_certificate_where_an_authority_is_named() {
    let folder = Folder::new();
    let (authority, stranger) = (Authority::new("Test CA"), Authority::new("Stranger"));
    let ca = folder.write("ca.pem", authority.pem());
    let (cert, key) = folder.write_pair("server", &authority.issue_for(&["app.internal"]));
    let server = server(json!({ "cert": cert, "key": key, "client_ca": ca }));
    let with = |name: &str, authority: &Authority| {
        let (cert, key) = folder.write_pair(name, &authority.issue_for(&["spiffe://test/client"]));
        json!({ "ca": ca, "cert": cert, "key": key })
    };

    let (mut near, mut far, _) =
        handshake(&client(with("good", &authority)), &server, "app.internal").await.expect("it is let in");
    near.write_all(b"hello").await.expect("it is open");
    near.flush().await.expect("it is open");
    let mut text = [0; 5];
    far.read_exact(&mut text).await.expect("it comes");

    let refused = handshake(&client(with("strange", &stranger)), &server, "app.internal").await;
    assert_eq!(refused.err().as_deref(), Some("the peer's certificate comes from an unknown authority"));

    // In TLS 1.3 the client is done before the server has looked: it learns it when it reads.
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    let client = client(json!({ "ca": ca }));
    let (near, far) =
        tokio::join!(client.connect(0, "app.internal", near.into(), false), server.accept(far.into()));
    assert_eq!(far.err().map(in_words).as_deref(), Some("the peer showed no certificate"));
    let mut near = Connection::new(near.expect("nothing is wrong yet"), Rc::default());
    let read = std::future::poll_fn(|cx| near.poll_fill(cx, usize::MAX)).await;
    assert!(read.is_err());
    assert_eq!(
        near.failure().and_then(super::error::refusal).as_deref(),
        Some("the peer refused: it wants a client certificate (alert CertificateRequired)")
    );
}

#[tokio::test]
async fn sessions_go_on_until_the_files_have_changed() {
    let folder = Folder::new();
    let authority = Authority::new("Test CA");
    let ca = folder.write("ca.pem", authority.pem());
    let (cert, key) = folder.write_pair("server", &authority.issue_for(&["app.internal"]));
    let settings = json!({ "cert": cert, "key": key });
    let server = server(settings.clone());
    let client = client(json!({ "ca": ca }));
    let connect = async |server: &Server| {
        let (mut near, far, resumed) =
            handshake(&client, server, "app.internal").await.expect("it is let in");
        // The tickets for the next time come behind the handshake; they are taken in without being waited for.
        assert!(near.is_silent());
        drop(far);
        assert!(!near.is_silent(), "the end of the other side is seen");
        resumed
    };
    assert!(!connect(&server).await);
    assert!(connect(&server).await);

    folder.write_pair("server", &authority.issue_for(&["app.internal"]));
    let renewed: server::Settings = serde_json::from_value(settings).expect("they are good");
    assert!(!server.serves(&renewed, ALPN));
    assert!(!connect(&Server::new(&renewed, ALPN)).await);
}

#[tokio::test]
async fn a_body_until_close_that_is_cut_is_no_clean_end() {
    let folder = Folder::new();
    let authority = Authority::new("Test CA");
    let ca = folder.write("ca.pem", authority.pem());
    let (cert, key) = folder.write_pair("server", &authority.issue_for(&["app.internal"]));
    let server = server(json!({ "cert": cert, "key": key }));
    let client = client(json!({ "ca": ca }));
    for (why, says_goodbye) in
        [("the other side has closed", true), ("somebody has cut the connection", false)]
    {
        let (near, mut far, _) = handshake(&client, &server, "app.internal").await.expect("it is let in");
        far.write_all(b"hello").await.expect("it is open");
        far.flush().await.expect("it is open");
        if says_goodbye {
            far.shutdown().await.expect("it is open");
        }
        drop(far);
        let mut near = Connection::new(near, Rc::default());
        let mut read = async || std::future::poll_fn(|cx| near.poll_fill(cx, usize::MAX)).await;
        assert_eq!(read().await.expect("it has come"), 5, "{why}");
        assert_eq!(read().await.ok(), says_goodbye.then_some(0), "{why}");
    }
}
