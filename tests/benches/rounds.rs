//! Measure and baseline in turns, and the figures that are taken of them.

use crate::Failure;

/// Figures of several rounds: in each, a measure and its baseline.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<(f64, f64)>);

impl Rounds {
    /// Runs both `rounds` times, taking turns in who goes first, after one round that only warms up.
    pub(crate) async fn take(
        rounds: usize,
        mut measure: impl AsyncFnMut(usize) -> Result<f64, Failure>,
        mut baseline: impl AsyncFnMut(usize) -> Result<f64, Failure>,
    ) -> Result<Self, Failure> {
        let mut taken = Self::default();
        for round in 0..=rounds {
            let pair = if round % 2 == 0 {
                let baseline = baseline(round).await?;
                (measure(round).await?, baseline)
            } else {
                (measure(round).await?, baseline(round).await?)
            };
            if round > 0 {
                taken.0.push(pair);
            }
        }
        Ok(taken)
    }

    /// Figures that were noted while [`Rounds::take`] ran; the first of each belong to the round that warmed up.
    pub(crate) fn of(measure: Vec<f64>, baseline: Vec<f64>) -> Self {
        Self(measure.into_iter().zip(baseline).skip(1).collect())
    }

    pub(crate) fn push(&mut self, measure: f64, baseline: f64) {
        self.0.push((measure, baseline));
    }

    /// Value, baseline, ratio: medians.
    pub(crate) fn figures(&self) -> (f64, Option<f64>, Option<f64>) {
        let of = |pick: fn(&(f64, f64)) -> f64| median(self.0.iter().map(pick).collect());
        (of(|p| p.0), Some(of(|p| p.1)), Some(of(|p| p.0 / p.1)))
    }
}

pub(crate) fn median(figures: Vec<f64>) -> f64 {
    percentile(figures, 0.5)
}

/// The figure below which this part of them lies; NaN of none.
pub(crate) fn percentile(mut figures: Vec<f64>, part: f64) -> f64 {
    if figures.is_empty() {
        return f64::NAN;
    }
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    figures[(last as f64 * part).round() as usize]
}
