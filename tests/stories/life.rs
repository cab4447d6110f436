//! Starting, being asked, and the commands that do the asking.

use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::*;

/// Runs the binary to its end: exit code and stderr.
async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(arguments).env_remove("OUTRIGGER_CONFIG").current_dir("/");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let output = output.expect("the binary runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn what_prevents_a_start_is_said_with_its_cure() {
    let app = Upstream::that().answers(200).start().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("it is bound").to_string();
    let good = Config::over([&app]).text();
    let listener = format!("[[listener]]\nname = \"b\"\naddress = \"{taken}\"\nupstream = \"app\"\n");
    let admin = good.replacen("127.0.0.1:0", &taken, 1);
    let no_token = good.replacen("[telemetry]", "token_file = \"/nowhere/token\"\n[telemetry]", 1);
    let no_log = good.replacen("path = \"stdout\"", "path = \"/nowhere/log\"", 1);
    let no_address = good.replacen("127.0.0.1:0", "localhost", 1);
    #[rustfmt::skip]
    let cases = [
        // why                       configuration                code  stderr says
        ("a listener's port",        format!("{good}{listener}"), 1,    vec![&*taken, "listener \"b\"", "is taken; stop what holds it"]),
        ("the admin port",           admin,                       1,    vec![&*taken, "admin.address", "is taken"]),
        ("no such token",            no_token,                    1,    vec!["/nowhere/token", "admin.token_file"]),
        ("no place for the log",     no_log,                      1,    vec!["/nowhere/log", "telemetry.access_log.path"]),
        ("an address is no address", no_address,                  2,    vec!["localhost"]),
    ];
    for (number, (why, config, code, says)) in cases.into_iter().enumerate() {
        let name = format!("outrigger-start-{}-{number}.toml", std::process::id());
        let file = crate::support::proxy::write_file(&std::env::temp_dir(), &name, &config);
        let (ended, text) = run(&["run", "-c", file.to_str().expect("plain text")]).await;
        std::fs::remove_file(file).expect("it is there");
        assert_eq!(ended, Some(code), "{why}: {text}");
        assert!(says.iter().all(|say| text.contains(say)), "{why}: {text}");
    }

    let (code, text) = run(&["run", "-c", "/nowhere/outrigger.toml"]).await;
    assert_eq!((code, text.lines().count()), (Some(2), 1), "{text}");
    let (code, text) = run(&["probe"]).await;
    assert_eq!((code, text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("OUTRIGGER_CONFIG"), "{text}");
}

#[tokio::test]
async fn commands_talk_to_the_sidecar_of_the_same_file() {
    let app = Upstream::that().answers(200).start().await;
    let admin = free_address().to_string();
    let config = Config::over([&app]).listener("direction = \"ingress\"");
    let config = config.text().replacen("127.0.0.1:0", &admin, 1);
    let mut proxy = Proxy::start(&config).await;

    assert_eq!(proxy.command(&["probe"]).await, (Some(0), "ready\n".to_owned()));
    let (code, text) = proxy.command(&["reload"]).await;
    assert_eq!(code, Some(0), "{text}");

    proxy.rewrite(&format!("{config}nonsense = true\n"));
    let (code, text) = proxy.command(&["reload"]).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("nonsense"), "{text}");
    assert_eq!(proxy.command(&["probe"]).await.0, Some(0), "a bad file does not make it unhealthy");

    let (code, text) = proxy.command(&["drain", "--wait"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(TcpStream::connect(proxy.listener()).await.is_err(), "it has ended by then");
    let (code, text) = proxy.command(&["probe"]).await;
    assert!(code == Some(1) && text.contains("drained"), "{text}");

    assert_eq!(proxy.command(&["quit"]).await.0, Some(0));
    assert_eq!(proxy.ends().await, Some(0));
    let (code, text) = proxy.command(&["probe"]).await;
    assert!(code == Some(1) && text.contains("is it running"), "{text}");
}

#[tokio::test]
async fn max_connections_stops_accepting_and_is_counted() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).and("[server]\nmax_connections = 2\nworkers = 2").start().await;
    let mut first = proxy.connect().await;
    let mut second = proxy.connect().await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.exchange(&get("/")).await.status, 200);
    }
    let mut third = proxy.connect().await;
    third.send(get("/third")).await;
    eventually("it is counted", async || {
        proxy.metric("outrigger_limit_reached_total{what=max_connections}").await > 0.0
    })
    .await;
    assert_eq!((app.seen(), proxy.metric("outrigger_client_connections").await), (2, 2.0));

    drop(first);
    assert_eq!(third.response().await.status, 200, "it waited for its turn");
}

#[tokio::test]
async fn names_are_known_when_it_is_ready_and_unknown_ones_stop_nothing() {
    let app = Upstream::that().answers(200).start().await;
    let name = format!("localhost:{}", app.address().port());
    let unknown = "[upstream.other]\nendpoints = [\"nobody.invalid:80\"]\n[[listener.route]]\nmatch = { path_prefix = \"/other\" }\nupstream = \"other\"";
    let proxy = Config::over_addresses(&[name]).and(unknown).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    assert_eq!(proxy.admin_get("/readyz").await.status, 200);
    let verbose = proxy.admin_get("/readyz?verbose").await.text();
    assert!(verbose.contains("upstream other: no usable endpoint"), "{verbose}");
}

#[tokio::test]
async fn what_ready_requires_names_makes_it_unready() {
    let app = Upstream::refusing();
    let config = Config::over([&app]).upstream("breaker.min_requests = 1").upstream("retry.attempts = 1");
    let config = config.and("[upstream.gone]\nendpoints = [\"nobody.invalid:80\"]\n[[listener.route]]\nmatch = { path_prefix = \"/gone\" }\nupstream = \"gone\"");
    let config = config.text().replacen("[telemetry]", "ready_requires = [\"gone\"]\n[telemetry]", 1);
    let proxy = Proxy::start(&config).await;
    let answer = proxy.admin_get("/readyz").await;
    assert!(
        answer.status == 503 && answer.text().contains("upstream gone: no usable endpoint"),
        "{answer:?}"
    );
    assert_eq!(proxy.admin_get("/livez").await.status, 200);
}

#[tokio::test]
async fn it_is_ready_soon() {
    let app = Upstream::that().answers(200).start().await;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let proxy = Config::over([&app]).start().await;
        best = best.min(start.elapsed());
        drop(proxy);
    }
    // A bound for a debug build on a busy machine; the benchmark holds it to 20 ms.
    assert!(best < Duration::from_millis(500), "{best:?}");
}

/// Whoever starts a sidecar takes an open port for a sign that it runs, and may end it in the same moment.
#[tokio::test]
async fn a_signal_in_the_moment_of_the_start_is_obeyed() {
    let app = Upstream::that().answers(200).start().await;
    let directory = std::env::temp_dir();
    for number in 0..20 {
        let admin = free_address();
        let config = Config::over([&app]).text().replacen("127.0.0.1:0", &admin.to_string(), 1);
        let name = format!("outrigger-signal-{}-{number}.toml", std::process::id());
        let file = crate::support::proxy::write_file(&directory, &name, &config);
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["run", "-c"])
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs");
        let pid = rustix::process::Pid::from_child(&child);
        let status = tokio::task::spawn_blocking(move || {
            use rustix::process::Signal;
            while std::net::TcpStream::connect(admin).is_err() {
                assert!(child.try_wait().expect("the child can be asked").is_none(), "it could not start");
                std::hint::spin_loop();
            }
            for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
                rustix::process::kill_process(pid, signal).expect("it runs");
            }
            child.wait().expect("the child can be waited for")
        })
        .await
        .expect("no panic");
        std::fs::remove_file(file).expect("it is there");
        // By itself, as a second order to end has it; a signal's default action leaves no code.
        assert_eq!(status.code(), Some(1), "start {number}: {status}");
    }
}
