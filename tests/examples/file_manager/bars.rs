//! Progress on stderr: bars on a terminal, a plain line at the end of each phase where there is none.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{prefix:>11} {wide_bar} {pos:>8}/{len:8} {elapsed:>4}";

/// The bars of a run, one below the other.
pub(crate) struct Bars {
    all: MultiProgress,
    on_terminal: bool,
}

impl Bars {
    pub(crate) fn new() -> Self {
        // indicatif draws on stderr, and not at all where that is no terminal.
        Self { all: MultiProgress::new(), on_terminal: std::io::stderr().is_terminal() }
    }

    /// A bar that counts to `target`.
    pub(crate) fn add(&self, name: &str, target: u64) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(target).with_prefix(name.to_owned()));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// Ends a bar that has come as far as it will; without a terminal, says how far that was.
    pub(crate) fn end(&self, bar: &ProgressBar, what: &str) {
        bar.finish();
        if !self.on_terminal {
            self.say(&format!("{}: {what}", bar.prefix()));
        }
    }

    /// A line above the bars.
    pub(crate) fn say(&self, line: &str) {
        self.all.suspend(|| eprintln!("{line}"));
    }
}
