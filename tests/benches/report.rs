//! A measure's row, and how rows are shown: one table for people, JSON for programs.

use std::{fs, path::Path, pin::Pin};

use serde::Serialize;

use crate::Failure;

/// A group of measures being taken.
pub(crate) type Measuring<'o> = Pin<Box<dyn Future<Output = Result<Vec<Row>, Failure>> + 'o>>;

/// One line of the table, one object of the JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) measure: String,
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    /// What the value is held against, in the same unit.
    pub(crate) baseline: Option<f64>,
    /// Median of the rounds' own ratios of value to baseline, which is steadier than the ratio of the medians.
    pub(crate) ratio: Option<f64>,
    /// What must hold, in words.
    pub(crate) bar: String,
    /// `None` where there is nothing to hold.
    pub(crate) holds: Option<bool>,
}

/// What must hold of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    ValueAtMost(f64),
    ValueAtLeast(f64),
    /// At least this, scaled with the speed of this machine: bar and factor.
    InProportion(f64, f64),
    /// At most this many seconds, scaled with the slowness of this machine: bar and factor.
    InTime(f64, f64),
    /// Shown for the others' sake.
    None,
}

impl Row {
    pub(crate) fn new(
        measure: impl Into<String>,
        unit: &'static str,
        (value, baseline, ratio): (f64, Option<f64>, Option<f64>),
        bar: Bar,
    ) -> Self {
        let of_ratio = ratio.unwrap_or(f64::NAN);
        let (text, holds) = match bar {
            Bar::RatioAtMost(most) => (format!("ratio ≤ {most}"), Some(of_ratio <= most)),
            Bar::RatioAtLeast(least) => (format!("ratio ≥ {least}"), Some(of_ratio >= least)),
            Bar::ValueAtMost(most) => (format!("≤ {}", number(most)), Some(value <= most)),
            Bar::ValueAtLeast(least) => (format!("≥ {}", number(least)), Some(value >= least)),
            Bar::InProportion(least, factor) => {
                let here = least * factor;
                (format!("≥ {} ({} in proportion)", number(here), number(least)), Some(value >= here))
            }
            Bar::InTime(most, factor) => {
                let here = most * factor;
                (format!("≤ {} ({} in proportion)", number(here), number(most)), Some(value <= here))
            }
            Bar::None => (String::new(), None),
        };
        Self { measure: measure.into(), value: Some(value), unit, baseline, ratio, bar: text, holds }
    }

    /// A row without a figure, and why.
    pub(crate) fn missing(measure: &str, why: &str) -> Self {
        Self {
            measure: measure.to_owned(),
            value: None,
            unit: "",
            baseline: None,
            ratio: None,
            bar: why.to_owned(),
            holds: None,
        }
    }
}

pub(crate) fn print(rows: &[Row]) {
    let cells = |row: &Row| {
        let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
        [
            row.measure.clone(),
            optional(row.value),
            row.unit.to_owned(),
            optional(row.baseline),
            row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            row.bar.clone(),
            row.holds.map(|holds| if holds { "yes" } else { "NO" }).unwrap_or_default().to_owned(),
        ]
    };
    let head = ["measure", "value", "unit", "baseline", "ratio", "bar", "holds"].map(str::to_owned);
    let lines: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let widths: Vec<usize> =
        (0..7).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
    for (i, line) in lines.iter().enumerate() {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                let numeric = i > 0 && matches!(column, 1 | 3 | 4);
                if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            })
            .collect();
        println!("| {} |", padded.join(" | "));
        if i == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("|-{}-|", rule.join("-|-"));
        }
    }
}

pub(crate) fn write_json(rows: &[Row], path: &Path) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(rows)?;
    fs::write(path, text + "\n").map_err(|error| format!("writing `{}`: {error}", path.display()))?;
    Ok(())
}

/// Three digits that matter, with thousands set apart.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut apart = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            apart.push(',');
        }
        apart.push(digit);
    }
    if rest.is_empty() { format!("{sign}{apart}") } else { format!("{sign}{apart}.{rest}") }
}
