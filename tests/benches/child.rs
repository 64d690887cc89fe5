//! This program started once more, for what has to be measured in a process of its own.
//!
//! A child tells on its standard output what its parent needs, and ends when its input does.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::{Failure, leadership, memory, pending};

/// Whose child, with what it was told on its command line.
pub(crate) enum Child {
    Backlog(memory::Child),
    Pending(pending::Child),
    Rejoin(leadership::Child),
}

impl Child {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let args: Vec<String> = args.into_iter().collect();
        let child = match args.split_first() {
            Some((kind, args)) if kind == "backlog" => memory::Child::parse(args).map(Self::Backlog),
            Some((kind, args)) if kind == "pending" => pending::Child::parse(args).map(Self::Pending),
            Some((kind, args)) if kind == "rejoin" => leadership::Child::parse(args).map(Self::Rejoin),
            _ => None,
        };
        child.ok_or_else(|| format!("`--child {}` is for the bench itself", args.join(" ")))
    }
}

/// A child, its input and its output.
pub(crate) struct Running {
    process: Process,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start<'a>(kind: &str, args: impl IntoIterator<Item = &'a str>) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--child", kind])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().ok_or("a child has no output")?);
        Ok(Self { process, input, output })
    }

    pub(crate) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err("a child has ended early".into());
        }
        Ok(line.trim().to_owned())
    }

    pub(crate) fn ask(&mut self) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or("a child has no input")?;
        writeln!(input, "?")?;
        Ok(input.flush()?)
    }

    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.input = None;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended in good order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for a line of the parent, or for its end.
pub(crate) async fn parent_spoke() -> Result<(), Failure> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}
