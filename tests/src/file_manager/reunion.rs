//! What the example says of the time in which its devices were apart: what each of them sent and got, who stands where
//! two had edited the same, and the conflict that a person decided.

use std::fmt;

use serde_json::json;

/// What became of the edits that were made apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reunion {
    /// The leader, then the followers.
    pub devices: Vec<Exchange>,
    /// What more than one of them had edited.
    pub fates: Vec<Fate>,
    /// The conflict that waited for a person.
    pub decision: Option<Decision>,
}

/// What a device gave and got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// What the example calls it.
    pub name: String,
    /// Changes of its own that are in the log.
    pub sent: u64,
    /// Entries of the log that others made.
    pub received: u64,
    /// Changes of its own that stand in part, or beside others'.
    pub merged: u64,
    /// Conflicts that it had a part in.
    pub conflicts: u64,
    /// Changes of its own that were refused, and are kept with their values.
    pub rejected: u64,
}

/// What became of something that more than one had edited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// What it is, for people.
    pub what: String,
    /// Whose edit stands.
    pub stands: String,
    /// What it is now.
    pub now: String,
}

/// A conflict, and how it was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What it is about.
    pub what: String,
    /// Who wrote what stood meanwhile.
    pub local: (String, String),
    /// Who wrote what waited.
    pub remote: (String, String),
    /// The device on which it was decided.
    pub by: String,
    /// `local`, `remote` or `merged`.
    pub choice: String,
    /// What was decided.
    pub decided: String,
    /// What each device has in the end.
    pub now: Vec<(String, String)>,
}

impl Reunion {
    /// What is wrong, one sentence each.
    pub fn differences(&self) -> Vec<String> {
        let Some(decision) = &self.decision else {
            return vec!["No conflict waited for a person, and one should have.".to_owned()];
        };
        let other = |(device, value): &(String, String)| {
            (*value != decision.decided).then(|| {
                format!("`{device}` has {value} for {}, and {} was decided.", decision.what, decision.decided)
            })
        };
        decision.now.iter().filter_map(other).collect()
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let side = |(device, value): &(String, String)| json!({ "device": device, "value": value });
        json!({
            "devices": self.devices.iter().map(|d| json!({
                "name": d.name, "sent": d.sent, "received": d.received, "merged": d.merged,
                "conflicts": d.conflicts, "rejected": d.rejected,
            })).collect::<Vec<_>>(),
            "records": self.fates.iter().map(|f| json!({
                "what": f.what, "stands": f.stands, "now": f.now,
            })).collect::<Vec<_>>(),
            "decision": self.decision.as_ref().map(|d| json!({
                "what": d.what, "local": side(&d.local), "remote": side(&d.remote), "by": d.by,
                "choice": d.choice, "decided": d.decided, "now": d.now.iter().map(side).collect::<Vec<_>>(),
            })),
        })
    }
}

impl fmt::Display for Reunion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "While apart, all three edited, some of it the same. Back together:")?;
        writeln!(
            f,
            "{:<18}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "device", "sent", "received", "merged", "conflicts", "rejected"
        )?;
        for Exchange { name, sent, received, merged, conflicts, rejected } in &self.devices {
            writeln!(f, "{name:<18}{sent:>10}{received:>10}{merged:>10}{conflicts:>10}{rejected:>10}")?;
        }
        let width = |of: fn(&Fate) -> &str| self.fates.iter().map(|fate| of(fate).chars().count()).max();
        let (what, stands) = (width(|f| &f.what).unwrap_or(0), width(|f| &f.stands).unwrap_or(0));
        for fate in &self.fates {
            writeln!(f, "  {:<what$}  {:<stands$}  {}", fate.what, fate.stands, fate.now)?;
        }
        let Some(Decision { what, local, remote, by, choice, decided, now }) = &self.decision else {
            return Ok(());
        };
        writeln!(f, "{what} waits for a person:")?;
        writeln!(f, "  {:<16}{}, which stands meanwhile", local.0, local.1)?;
        writeln!(f, "  {:<16}{}", remote.0, remote.1)?;
        writeln!(f, "  {:<16}{decided}, decided there ({choice})", by)?;
        let agree = now.iter().all(|(_, value)| value == decided);
        let now: Vec<String> = now.iter().map(|(device, value)| format!("{device} {value}")).collect();
        writeln!(f, "  now: {}, {}", now.join(", "), if agree { "agreed" } else { "DIFFERENT" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reunion() -> Reunion {
        let pair = |device: &str, value: &str| (device.to_owned(), value.to_owned());
        let fate = |what: &str, stands: &str, now: &str| Fate {
            what: what.to_owned(),
            stands: stands.to_owned(),
            now: now.to_owned(),
        };
        Reunion {
            devices: vec![Exchange {
                name: "leader".to_owned(),
                sent: 6,
                received: 12,
                merged: 1,
                conflicts: 5,
                rejected: 0,
            }],
            fates: vec![fate("name of `a`", "follower 2", "b"), fate("`c`", "leader", "gone")],
            decision: Some(Decision {
                what: "color of tag `Red`".to_owned(),
                local: pair("leader", "#1"),
                remote: pair("follower 1", "#2"),
                by: "follower 2".to_owned(),
                choice: "merged".to_owned(),
                decided: "#3".to_owned(),
                now: vec![pair("leader", "#3"), pair("follower 1", "#3")],
            }),
        }
    }

    #[test]
    fn it_reads_in_columns() {
        assert_eq!(
            reunion().to_string(),
            "\
While apart, all three edited, some of it the same. Back together:
device                  sent  received    merged conflicts  rejected
leader                     6        12         1         5         0
  name of `a`  follower 2  b
  `c`          leader      gone
color of tag `Red` waits for a person:
  leader          #1, which stands meanwhile
  follower 1      #2
  follower 2      #3, decided there (merged)
  now: leader #3, follower 1 #3, agreed
"
        );
        assert_eq!(reunion().differences(), Vec::<String>::new());
        let json = reunion().json();
        assert_eq!(
            (&json["devices"][0]["received"], &json["records"][1]["now"]),
            (&json!(12), &json!("gone"))
        );
        assert_eq!(json["decision"]["remote"], json!({ "device": "follower 1", "value": "#2" }));
    }

    #[test]
    fn who_did_not_take_the_decision_is_named() {
        let mut reunion = reunion();
        if let Some(decision) = &mut reunion.decision {
            decision.now[1].1 = "#2".to_owned();
        }
        assert_eq!(
            reunion.differences(),
            ["`follower 1` has #2 for color of tag `Red`, and #3 was decided."]
        );
        assert!(reunion.to_string().ends_with("follower 1 #2, DIFFERENT\n"));
        assert_eq!(
            Reunion::default().differences(),
            ["No conflict waited for a person, and one should have."]
        );
    }
}
