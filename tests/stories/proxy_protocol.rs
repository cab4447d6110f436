//! The PROXY protocol: clients behind a load balancer keep their address, and upstreams learn it.

use std::net::SocketAddr;

use crate::support::servers::{Server, curl, must};
use crate::support::*;

/// A header of version 2 for IPv4.
fn v2(command: u8, client: &str, local: &str, extensions: &[u8]) -> Vec<u8> {
    let ends = [client, local].map(|end| end.parse::<std::net::SocketAddrV4>().expect("an address"));
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11]);
    header.extend((12 + extensions.len() as u16).to_be_bytes());
    ends.iter().for_each(|end| header.extend(end.ip().octets()));
    ends.iter().for_each(|end| header.extend(end.port().to_be_bytes()));
    header.extend(extensions);
    header
}

/// Behind a balancer, which says who the client is.
fn behind(app: &Upstream) -> Config {
    Config::over([app])
        .listener("proxy_protocol = true")
        .listener("direction = \"ingress\"")
        .listener("trust = [\"192.0.2.0/24\"]")
}

fn with_id(id: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: app.test\r\nx-request-id: {id}\r\n\r\n")
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = behind(&app).start().await;
    let trusted = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n";
    let other = "PROXY TCP6 2001:db8::7 2001:db8::1 4712 80\r\n";
    let tlv = [0x04, 0, 4, 1, 2, 3, 4];
    let cases: [(&str, Vec<u8>, Option<&str>, &str); 6] = [
        // why                          header                  client               is trusted
        ("version 1", trusted.into(), Some("192.0.2.7:4711"), "kept"),
        ("version 1, IPv6", other.into(), Some("[2001:db8::7]:4712"), "made"),
        ("version 2", v2(0x21, "192.0.2.8:1", "198.51.100.1:80", &[]), Some("192.0.2.8:1"), "kept"),
        (
            "with an extension",
            v2(0x21, "192.0.2.9:65535", "198.51.100.1:80", &tlv),
            Some("192.0.2.9:65535"),
            "kept",
        ),
        ("a health check is the balancer's", v2(0x20, "192.0.2.7:1", "198.51.100.1:80", &[]), None, "made"),
        ("unknown is the balancer", b"PROXY UNKNOWN 192.0.2.7 is ignored\r\n".to_vec(), None, "made"),
    ];
    for (number, (why, header, client, id)) in cases.into_iter().enumerate() {
        for pieces in [false, true] {
            let (before, name) = (app.seen(), format!("id-{number}-{pieces}"));
            let mut connection = proxy.connect().await;
            let bytes = [&header[..], with_id(&name).as_bytes()].concat();
            if pieces {
                for byte in &bytes {
                    connection.send([*byte]).await;
                }
            } else {
                connection.send(&bytes).await;
            }
            assert_eq!(connection.response().await.status, 200, "{why}");
            // The header counts for the whole connection.
            assert_eq!(connection.exchange(&with_id(&name)).await.status, 200, "{why}");
            for seen in &app.requests()[before..] {
                let ip = client.map_or("127.0.0.1".parse().expect("an address"), |client| {
                    client.parse::<SocketAddr>().expect("an address").ip()
                });
                assert_eq!(seen.field("x-forwarded-for"), Some(&*ip.to_string()), "{why}");
                assert_eq!(seen.field("x-request-id") == Some(&name), id == "kept", "{why}");
            }
            if let Some(client) = client.filter(|_| id == "kept") {
                assert_eq!(proxy.access_log(&name).await["client"], client, "{why}");
            }
        }
    }
    proxy.rests().await;
}

#[tokio::test]
async fn a_connection_without_a_good_header_is_closed_and_counted() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = behind(&app).listener("limits = { header_timeout = \"200ms\" }").start().await;
    let count = async |reason: &str| {
        proxy
            .metric(&format!("outrigger_client_connections_refused_total{{listener=main,reason={reason}}}"))
            .await
    };
    let cases: [(&[u8], &str); 5] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "proxy_protocol_missing"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "proxy_protocol_missing"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 080\r\nGET / HTTP/1.1\r\n\r\n", "proxy_protocol_malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c", "proxy_protocol_malformed"),
        (b"PROXY TCP4 192.0.2.7 ", "proxy_protocol_timeout"),
    ];
    for (bytes, reason) in cases {
        let before = count(reason).await;
        let mut client = proxy.connect().await;
        client.try_send(bytes).await;
        assert!(client.response_or_end("GET").await.is_none(), "no answer, but the end: {reason}");
        eventually(reason, async || count(reason).await == before + 1.0).await;
    }
    // Who only looks whether the port is open is nobody's problem.
    let watcher = proxy.connect().await;
    drop(watcher);
    proxy.metric_becomes("outrigger_client_connections{listener=main}", 0.0).await;
    assert_eq!(proxy.metric("outrigger_client_connections_refused_total").await, 5.0);
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn curl_and_haproxy_say_whose_a_connection_is() {
    let app = Upstream::that().answers(200).with_body("hello").start().await;
    let proxy = behind(&app).start().await;
    let url = format!("http://{}/", proxy.listener());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(must(curl(&["--haproxy-protocol", version, &url])).await, "hello", "{version}");
    }
    let address = proxy.listener();
    for version in ["send-proxy", "send-proxy-v2"] {
        let haproxy = Server::haproxy_with(|port, _| {
            format!("listen in\n  mode tcp\n  bind 127.0.0.1:{port}\n  server s {address} {version}")
        })
        .await;
        // Where HAProxy listens is not where its client comes from.
        let stream = tokio::net::TcpSocket::new_v4().expect("a socket");
        stream.bind("127.0.0.7:0".parse().expect("an address")).expect("all of 127/8 is here");
        let stream = stream.connect(haproxy.address).await.expect("it listens");
        let from = stream.local_addr().expect("it is connected");
        let mut client = Client::over(stream);
        assert_eq!(client.exchange(&get(&format!("/{version}"))).await.text(), "hello");
        assert_eq!(app.requests().last().expect("one").field("x-forwarded-for"), Some("127.0.0.7"));
        let line = proxy.access_log(&format!("\"/{version}\"")).await;
        assert_eq!(line["client"], from.to_string(), "{version}");
    }
}

#[tokio::test]
async fn nginx_and_haproxy_learn_whose_a_connection_is() {
    for version in ["v1", "v2"] {
        let nginx = Server::nginx_with(|port, _| {
            format!(
                "server {{ listen 127.0.0.1:{port} proxy_protocol;
                 location / {{ return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; }} }}"
            )
        })
        .await;
        let haproxy = Server::haproxy_with(|port, _| {
            format!(
                "frontend in\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200 content-type \
                 text/plain lf-string \"%[src]:%[src_port]\""
            )
        })
        .await;
        for server in [nginx, haproxy] {
            let config = Config::over_addresses(&[server.address.to_string()]).one_worker();
            let proxy = config.upstream(&format!("proxy_protocol = \"{version}\"")).plain().start().await;
            let (mut one, mut other) = (proxy.connect().await, proxy.connect().await);
            for _ in 0..3 {
                for client in [&mut one, &mut other] {
                    let said = client.exchange(&get("/")).await.text();
                    assert_eq!(
                        said,
                        client.local_address().to_string(),
                        "{version}: each by its own address"
                    );
                }
            }
            let connects = proxy.metric("outrigger_upstream_connects_total{upstream=app,result=ok}").await;
            assert_eq!(connects, 2.0, "each has a connection of its own, and keeps it");
        }
    }
}

#[tokio::test]
async fn connections_of_clients_that_left_are_bounded() {
    let app = Upstream::that().answers(200).start().await;
    let config = Config::over([&app]).one_worker().upstream("proxy_protocol = \"v1\"");
    let proxy = config
        .upstream("connections = { max = 4 }")
        .upstream("concurrency.limit = { kind = \"fixed\", max = 4 }")
        .start()
        .await;
    for _ in 0..40 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(app.connections(), 40, "nobody gets another's");
    eventually("no more than five are open", async || app.open() <= 5).await;
    let first = app.bytes();
    assert!(
        first.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "),
        "{:?}",
        first[..40].escape_ascii().to_string()
    );
}
