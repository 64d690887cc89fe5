//! Rows as they come, with the turn of a statement that writes.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use sea_orm::{DbErr, QueryResult};

use crate::gate::{Guard, WriteGate};

/// The rows of a streamed query. A statement that writes (`INSERT … RETURNING`) keeps its turn until the
/// stream ends or is dropped.
pub struct RowStream<S> {
    // Before `turn`: a stream that is dropped half-way ends its statement first.
    rows: S,
    turn: Option<StreamTurn>,
}

struct StreamTurn {
    guard: Option<Guard>,
    gate: Arc<WriteGate>,
    rows: u64,
}

impl<S> RowStream<S> {
    pub(super) fn reading(rows: S) -> Self {
        Self { rows, turn: None }
    }

    pub(super) fn writing(rows: S, guard: Option<Guard>, gate: Arc<WriteGate>) -> Self {
        Self { rows, turn: Some(StreamTurn { guard, gate, rows: 0 }) }
    }
}

impl<S: Stream<Item = Result<QueryResult, DbErr>> + Unpin> Stream for RowStream<S> {
    type Item = Result<QueryResult, DbErr>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.rows).poll_next(context);
        match &next {
            Poll::Ready(None) => self.turn = None,
            Poll::Ready(Some(Ok(_))) => {
                if let Some(turn) = &mut self.turn {
                    turn.rows += 1;
                }
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        next
    }
}

impl Drop for StreamTurn {
    fn drop(&mut self) {
        self.guard = None;
        // SQLite wrote all rows before it returned the first, so a stream that was dropped early counts too.
        self.gate.note_commit(self.rows.max(1));
    }
}

impl<S> fmt::Debug for RowStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream").field("writes", &self.turn.is_some()).finish_non_exhaustive()
    }
}
