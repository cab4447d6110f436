//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    outrigger::cli::main()
}
