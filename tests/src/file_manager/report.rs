//! What the example says at its end: a table of rows and digests per model and device, whether they are
//! equal, and what it took. As text for people and as JSON for programs.

use std::fmt::{self, Write};

use serde_json::json;

use super::{digest::TableDigest, reunion::Reunion, succession::Succession, walk::Skipped};

/// How many of the paths that could not be read the text names.
const SKIPPED_SHOWN: usize = 10;

/// One device at the end of a run. The first of a report is the leader.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// What the example calls it.
    pub name: String,
    /// What its database holds, in the order of the models.
    pub tables: Vec<TableDigest>,
    /// Entries in its log.
    pub log_entries: u64,
    /// Bytes that it sent over the network.
    pub bytes_sent: u64,
}

/// A finished run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was indexed.
    pub directory: String,
    /// Who recorded changes.
    pub capture: String,
    /// Entries after which the walk ended with more to see.
    pub limited: Option<u64>,
    /// How much could not be read.
    pub skipped: u64,
    /// The first of what could not be read.
    pub skipped_named: Vec<Skipped>,
    /// The leader, then the followers.
    pub devices: Vec<DeviceReport>,
    /// What became of what they edited apart.
    pub reunion: Option<Reunion>,
    /// How one led after the other.
    pub succession: Option<Succession>,
    /// Seconds that each phase took, in order.
    pub phases: Vec<(&'static str, f64)>,
}

impl Report {
    /// What is wrong with the outcome, one sentence each. Empty: all devices hold the same.
    pub fn differences(&self) -> Vec<String> {
        let Some((leader, followers)) = self.devices.split_first() else {
            return vec!["There is no device to compare.".to_owned()];
        };
        let mut found = Vec::new();
        if leader.tables.iter().all(|table| table.rows == 0) {
            found.push(format!("`{}` holds no rows at all, so being equal would mean nothing.", leader.name));
        }
        for follower in followers {
            if follower.log_entries != leader.log_entries {
                found.push(format!(
                    "The log of `{}` has {} entries where that of `{}` has {}.",
                    follower.name, follower.log_entries, leader.name, leader.log_entries
                ));
            }
            found.extend(leader.tables.iter().filter_map(|table| difference(leader, table, follower)));
        }
        found.extend(self.reunion.iter().flat_map(Reunion::differences));
        found.extend(self.succession.iter().flat_map(Succession::differences));
        found
    }

    /// The report for programs.
    pub fn json(&self) -> serde_json::Value {
        let devices: Vec<_> = self
            .devices
            .iter()
            .map(|device| {
                let models: serde_json::Map<_, _> = device
                    .tables
                    .iter()
                    .map(|t| {
                        let digest: String = t.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
                        (t.model.clone(), json!({ "rows": t.rows, "digest": digest }))
                    })
                    .collect();
                json!({
                    "name": device.name, "log_entries": device.log_entries, "bytes_sent": device.bytes_sent,
                    "models": models,
                })
            })
            .collect();
        let seconds: serde_json::Map<_, _> =
            self.phases.iter().map(|(name, seconds)| ((*name).to_owned(), json!(seconds))).collect();
        let differences = self.differences();
        json!({
            "directory": self.directory, "capture": self.capture, "equal": differences.is_empty(),
            "differences": differences, "devices": devices, "seconds": seconds,
            "apart": self.reunion.as_ref().map(Reunion::json),
            "leading": self.succession.as_ref().map(Succession::json), "limited": self.limited.is_some(), "skipped": self.skipped,
            "skipped_named": self.skipped_named.iter().map(|s| json!({
                "path": s.path.to_string_lossy(), "reason": s.reason,
            })).collect::<Vec<_>>(),
        })
    }

    fn write_reading(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.directory)?;
        if let Some(limit) = self.limited {
            writeln!(f, "  There is more in it than the limit of {limit} entries; the rest was left out.")?;
        }
        if self.skipped > 0 {
            writeln!(f, "  {} could not be read and was left out:", self.skipped)?;
        }
        let shown = self.skipped_named.len().min(SKIPPED_SHOWN);
        for skipped in &self.skipped_named[..shown] {
            writeln!(f, "    {}: {}", skipped.path.display(), skipped.reason)?;
        }
        match self.skipped.saturating_sub(shown as u64) {
            0 => Ok(()),
            more => writeln!(f, "    and {more} more"),
        }
    }

    fn write_tables(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18}", "model")?;
        for device in &self.devices {
            write!(f, "{:>20}", device.name)?;
        }
        f.write_str("\n")?;
        let models = self.devices.first().map(|d| d.tables.as_slice()).unwrap_or_default();
        for (i, model) in models.iter().enumerate() {
            write!(f, "{:<18}", model.model)?;
            let cells: Vec<_> = self.devices.iter().map(|d| d.tables.get(i)).collect();
            for cell in &cells {
                match cell {
                    Some(table) => write!(f, "{:>11} {}", table.rows, table.short())?,
                    None => write!(f, "{:>20}", "–")?,
                }
            }
            let equal = cells.iter().all(|cell| *cell == Some(model));
            writeln!(f, "  {}", if equal { "equal" } else { "DIFFERENT" })?;
        }
        self.write_row(f, "log entries", |device| device.log_entries)?;
        self.write_row(f, "bytes sent", |device| device.bytes_sent)
    }

    fn write_row(&self, f: &mut fmt::Formatter<'_>, what: &str, of: fn(&DeviceReport) -> u64) -> fmt::Result {
        write!(f, "{what:<18}")?;
        for device in &self.devices {
            write!(f, "{:>20}", of(device))?;
        }
        f.write_str("\n")
    }
}

fn difference(leader: &DeviceReport, table: &TableDigest, follower: &DeviceReport) -> Option<String> {
    let Some(other) = follower.tables.iter().find(|t| t.model == table.model) else {
        return Some(format!("`{}` has no table for `{}`.", follower.name, table.model));
    };
    if other == table {
        return None;
    }
    Some(match (table.rows, other.rows) {
        (rows, 0) => format!(
            "`{}` has {rows} rows on `{}` and none on `{}`: nothing of it arrived.",
            table.model, leader.name, follower.name
        ),
        (rows, others) if rows != others => format!(
            "`{}` has {rows} rows on `{}` and {others} on `{}`.",
            table.model, leader.name, follower.name
        ),
        (rows, _) => format!(
            "`{}` has {rows} rows on both `{}` and `{}`, with different values in them.",
            table.model, leader.name, follower.name
        ),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_reading(f)?;
        if let Some(reunion) = &self.reunion {
            write!(f, "{reunion}")?;
        }
        if let Some(succession) = &self.succession {
            write!(f, "{succession}")?;
        }
        self.write_tables(f)?;
        let mut phases = String::new();
        for (name, seconds) in &self.phases {
            write!(phases, "{}{name} {seconds:.2} s", if phases.is_empty() { "" } else { ", " })?;
        }
        writeln!(f, "{phases} (recorded by {})", self.capture)?;
        for difference in self.differences() {
            writeln!(f, "DIFFERENT: {difference}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, rows: u64, digest: u8) -> DeviceReport {
        let table =
            |model: &str, rows, byte| TableDigest { model: model.to_owned(), rows, sha256: [byte; 32] };
        DeviceReport {
            name: name.to_owned(),
            tables: vec![table("location", 1, 7), table("entry", rows, digest)],
            log_entries: 40,
            bytes_sent: 1234,
        }
    }

    fn report(devices: Vec<DeviceReport>) -> Report {
        let phases = vec![("indexing", 1.5), ("edits", 0.25)];
        Report {
            directory: "/tmp".to_owned(),
            capture: "trigger".to_owned(),
            devices,
            phases,
            ..Report::default()
        }
    }

    #[test]
    fn equal_devices_are_called_equal() {
        let report = report(vec![device("leader", 30, 0xab), device("follower", 30, 0xab)]);
        assert_eq!(report.differences(), Vec::<String>::new());
        assert_eq!(
            report.to_string(),
            "\
/tmp
model                           leader            follower
location                    1 07070707          1 07070707  equal
entry                      30 abababab         30 abababab  equal
log entries                         40                  40
bytes sent                        1234                1234
indexing 1.50 s, edits 0.25 s (recorded by trigger)
"
        );
        assert_eq!(report.json()["equal"], true);
        assert_eq!(report.json()["devices"][1]["models"]["entry"]["rows"], 30);
    }

    #[test]
    fn every_way_of_being_different_is_a_sentence() {
        let leader = || device("leader", 30, 1);
        let only = |follower: DeviceReport| {
            let found = report(vec![leader(), follower]).differences();
            assert_eq!(found.len(), 1, "{found:?}");
            found.concat()
        };
        let nothing = "`entry` has 30 rows on `leader` and none on `b`: nothing of it arrived.";
        assert_eq!(only(device("b", 0, 2)), nothing);
        assert_eq!(only(device("b", 29, 2)), "`entry` has 30 rows on `leader` and 29 on `b`.");
        assert_eq!(
            only(device("b", 30, 2)),
            "`entry` has 30 rows on both `leader` and `b`, with different values in them."
        );
        let short = DeviceReport { log_entries: 39, ..device("b", 30, 1) };
        assert_eq!(only(short), "The log of `b` has 39 entries where that of `leader` has 40.");
        let bare = DeviceReport { tables: vec![device("b", 30, 1).tables.remove(1)], ..device("b", 30, 1) };
        assert_eq!(only(bare), "`b` has no table for `location`.");
        let text = report(vec![leader(), device("b", 30, 2)]).to_string();
        assert!(text.contains("  DIFFERENT\n") && text.contains("\nDIFFERENT: `entry` has 30 rows on both"));
    }

    #[test]
    fn what_was_left_out_is_said_and_named_up_to_a_bound() {
        let named = (0..15).map(|i| Skipped { path: format!("/closed {i}").into(), reason: "no".to_owned() });
        let report = Report {
            limited: Some(20_000),
            skipped: 130,
            skipped_named: named.collect(),
            ..report(vec![device("leader", 30, 1)])
        };
        let text = report.to_string();
        assert!(text.starts_with(
            "/tmp\n  There is more in it than the limit of 20000 entries; the rest was left out.\n  \
             130 could not be read and was left out:\n    /closed 0: no\n"
        ));
        assert!(text.contains("    /closed 9: no\n    and 120 more\nmodel"), "{text}");
        assert_eq!(report.json()["skipped"], 130);
    }

    #[test]
    fn nothing_is_not_equal_to_nothing() {
        assert_eq!(report(Vec::new()).differences(), ["There is no device to compare."]);
        let empty = || {
            let mut device = device("leader", 0, 1);
            device.tables.remove(0);
            device
        };
        let found = report(vec![empty(), empty()]).differences();
        assert_eq!(found, ["`leader` holds no rows at all, so being equal would mean nothing."]);
    }
}
