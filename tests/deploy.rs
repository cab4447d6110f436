//! What installs the sidecar is what a cluster and the sidecar itself take: the manifest fits Kubernetes' own
//! schema, and every configuration that stands in `deploy`, `benches` and the README passes
//! `outrigger check --strict`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MANIFEST: &str = include_str!("../deploy/kubernetes/sidecar.yaml");

/// The first with native sidecars on by default, and the newest whose schema is known.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

#[test]
fn the_manifest_fits_the_schema_of_kubernetes() {
    for version in KUBERNETES {
        let output = validate(MANIFEST, version);
        assert!(output.status.success(), "{version}: {}", words(&output));
    }
}

#[test]
fn a_mistyped_field_in_the_manifest_would_be_found() {
    let mistyped = MANIFEST.replace("readinessProbe:", "readynessProbe:");
    assert_ne!(mistyped, MANIFEST);

    let output = validate(&mistyped, KUBERNETES[1]);

    assert!(!output.status.success() && words(&output).contains("readynessProbe"), "{}", words(&output));
}

#[test]
fn the_configuration_in_the_manifest_is_clean() {
    assert_clean("sidecar.toml", &block(MANIFEST, "outrigger.toml: |"));
}

#[test]
fn the_configuration_of_the_image_is_clean() {
    assert_clean("image.toml", include_str!("../deploy/outrigger.toml"));
}

#[test]
fn the_configuration_of_the_bench_is_clean() {
    let template = include_str!("../benches/peers/outrigger.toml");
    assert_clean("bench.toml", &template.replace("@WORKERS@", "2"));
}

#[test]
fn the_five_lines_of_the_readme_are_clean() {
    let (_, behind) = include_str!("../README.md").split_once("```toml\n").expect("the README shows TOML");
    let (lines, _) = behind.split_once("```").expect("the block ends");
    assert_eq!(lines.lines().count(), 5);
    assert_clean("readme.toml", lines);
}

#[test]
fn the_manifest_gives_the_pod_longer_than_the_sidecar_drains() {
    let grace = MANIFEST.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    let grace: u64 = grace.expect("the manifest says how long").parse().expect("in seconds");

    assert!(grace > outrigger::config::Server::default().drain_timeout.as_secs());
}

fn validate(manifest: &str, version: &str) -> Output {
    let file = written(&format!("sidecar-{version}-{}.yaml", manifest.len()), manifest);
    let tool = root().join("target/test-tools/bin/kubernetes-validate");
    Command::new(&tool)
        .args(["--strict", "-k", version])
        .arg(file)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; `tests/run` installs it", tool.display()))
}

#[track_caller]
fn assert_clean(name: &str, configuration: &str) {
    let file = written(name, configuration);
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["check", "--strict"])
        .arg(file)
        .output()
        .expect("the binary was built for this test");
    assert_eq!(output.status.code(), Some(0), "{name}: {}", words(&output));
}

/// The lines of a YAML block scalar, without their indentation.
fn block(yaml: &str, key: &str) -> String {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != key);
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let outer = indentation(lines.next().expect("the key stands in the manifest"));
    let inside = lines.take_while(|line| line.trim().is_empty() || indentation(line) > outer);
    inside.map(|line| format!("{}\n", line.trim_start())).collect()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn written(name: &str, text: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, text).expect("the target directory can be written");
    file
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
