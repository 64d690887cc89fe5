//! A clean release build of the example, as a newcomer meets it: only on demand, since it takes minutes.

use std::{path::Path, process::Command, time::Instant};

use crate::{
    Failure,
    args::Options,
    database,
    report::{Bar, Row},
};

pub(crate) const NAMES: &[&str] = &["build"];

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    if options.only.as_deref() != Some("build") {
        return Ok(vec![Row::missing("build", "not run: --only build")]);
    }
    let target = database::folder()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("build …");
    let began = Instant::now();
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--example", "file_manager"])
        .args(["-p", "tidelog-tests", "--jobs", "2"])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target.path())
        .status()?;
    if !status.success() {
        return Err(format!("the build of the example failed: {status}").into());
    }
    Ok(vec![Row::new("build", "s", (began.elapsed().as_secs_f64(), None, None), Bar::None)])
}
