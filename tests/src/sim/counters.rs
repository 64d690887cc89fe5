//! What was reached: how often, over all simulations. A run that never came to something proves nothing about it.

use std::{collections::BTreeMap, fmt};

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One more.
    pub fn count(&mut self, name: impl Into<String>) {
        self.add(name, 1);
    }

    /// So many more.
    pub fn add(&mut self, name: impl Into<String>, count: u64) {
        *self.0.entry(name.into()).or_default() += count;
    }

    /// How often it was.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name.clone(), *count);
        }
    }

    /// All whose name begins so.
    pub fn beginning<'c>(&'c self, with: &'c str) -> impl Iterator<Item = (&'c str, u64)> {
        self.0
            .iter()
            .filter(move |(name, _)| name.starts_with(with))
            .map(|(name, count)| (name.as_str(), *count))
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            writeln!(f, "{count:>10}  {name}")?;
        }
        Ok(())
    }
}
