//! The demo as a visitor runs it: the whole binary, its text, its ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A running demo, and the lines that it has not said yet. Ends with the test.
struct Demo {
    process: Child,
    lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let mut process = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .arg("demo")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let lines = Box::new(BufReader::new(process.stdout.take().expect("piped")).lines());
        Demo { process, lines }
    }

    /// The next line that contains `text`.
    fn line_with(&mut self, text: &str) -> String {
        self.lines
            .by_ref()
            .map(|line| line.expect("text"))
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("it ended without {text:?}"))
    }

    /// All that it still says, and whether it ended well.
    fn rest(mut self) -> (String, bool) {
        let text: Vec<_> = self.lines.by_ref().map(|line| line.expect("text")).collect();
        let ended = self.process.wait().expect("it ends");
        (text.join("\n"), ended.success())
    }

    /// Whether it ends well when nobody reads what it says.
    fn ends_well_unread(mut self) -> bool {
        self.lines = Box::new(std::iter::empty()); // closes the pipe
        self.process.wait().expect("it ends").success()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The answer to a GET of the address in a line such as `  curl http://127.0.0.1:8080/metrics`.
fn get(line: &str) -> String {
    let (_, url) = line.split_once("http://").expect("a URL");
    let (address, path) = url.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn it_can_be_asked_meanwhile_and_closes_with_a_table() {
    let mut demo = Demo::start(&["--for", "3s", "--no-tui"]);
    let (service, metrics) = (demo.line_with("curl -i"), demo.line_with("/metrics"));
    demo.line_with("0.0s"); // it runs
    assert!(get(&service).starts_with("HTTP/1.1 200"), "in the first, calm phase");
    assert!(get(&metrics).contains("\noutrigger_attempts_total{"));

    let (text, is_well) = demo.rest();
    assert!(is_well, "{text}");
    for words in ["without Outrigger", "all three are slow", "\noverall ", "Of the same ", "Retries: "] {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
    assert!(!text.contains('\x1b'), "no escape sequences where there is no terminal");
}

#[test]
fn an_interrupt_ends_it_with_the_table_so_far() {
    let mut demo = Demo::start(&["--for", "1h", "--no-tui"]);
    demo.line_with("1.0s");
    let process = rustix::process::Pid::from_child(&demo.process);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("it runs");
    let (text, is_well) = demo.rest();
    assert!(is_well, "{text}");
    assert!(text.contains("\nInterrupted after 1."), "{text}");
    assert!(text.contains("\nall is well ") && text.contains("\noverall "), "{text}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut demo = Demo::start(&["--for", "1h", "--no-tui"]);
    demo.line_with("0.0s");
    assert!(demo.ends_well_unread(), "as in `outrigger demo | head`");
}
