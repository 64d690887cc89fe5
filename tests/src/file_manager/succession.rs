//! What the example says of the time in which its devices led one after the other.

use std::fmt;

use serde_json::json;

/// Who led, and how long the others waited for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Succession {
    /// Who handed the lead over, to whom, and in how many seconds.
    pub handed_over: (String, String, f64),
    /// Who took over from whom when that was gone, and in how many seconds.
    pub took_over: (String, String, f64),
    /// How many changes came back with the old leader that nobody had seen, and in how many seconds it was level again.
    pub came_back: (u64, f64),
    /// Terms of the log: number and who led.
    pub terms: Vec<(u64, String)>,
    /// Tags that are missing on a device: device, tag.
    pub missing: Vec<(String, String)>,
}

impl Succession {
    /// What is wrong with it, one sentence each.
    pub fn differences(&self) -> Vec<String> {
        let missing = |(device, tag): &(String, String)| format!("`{device}` has lost the tag `{tag}`.");
        self.missing.iter().map(missing).collect()
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "handed_over": { "from": self.handed_over.0, "to": self.handed_over.1, "seconds": self.handed_over.2 },
            "took_over": { "by": self.took_over.0, "from": self.took_over.1, "seconds": self.took_over.2 },
            "came_back": { "unseen": self.came_back.0, "seconds": self.came_back.1 },
            "terms": self.terms.iter().map(|(number, leader)| json!({ "number": number, "leader": leader }))
                .collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |seconds: f64| seconds * 1e3;
        let (from, to, seconds) = &self.handed_over;
        writeln!(f, "Leading one after the other:")?;
        writeln!(f, "  {from} hands over to {to} in {:.0} ms, while all three write", ms(*seconds))?;
        let (by, from, seconds) = &self.took_over;
        writeln!(
            f,
            "  {from} is cut off, writes on, and is gone; {by} takes over in {:.0} ms",
            ms(*seconds)
        )?;
        let (unseen, seconds) = self.came_back;
        writeln!(
            f,
            "  {from} comes back with {unseen} changes that nobody had seen, and is level after {:.0} ms",
            ms(seconds)
        )?;
        let terms: Vec<String> =
            self.terms.iter().map(|(number, leader)| format!("{number} {leader}")).collect();
        writeln!(f, "  terms: {}", terms.join(", "))
    }
}
