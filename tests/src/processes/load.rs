//! What the processes write: transactions over several rows of the simulator's tables, in which everybody meets everybody.
//!
//! Each has a name that nobody used before, leaves a row of that name in the journal (`lasts`), and says what it wrote. All
//! but half of the transfers have an atomic mark, so that the log says of each record what each transaction made of it; of
//! the others, the journal and the accounts' totals tell.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use tidelog::Transaction;

use super::oracle::{Deed, Value, Wrote};
use crate::dice::Dice;

/// Where each transaction leaves a row.
pub const JOURNAL: &str = "lasts";

/// What becomes of a record is for its policy to say; all devices write to these.
const CONTESTED: [&str; 6] = ["leads", "origins", "roles", "customs", "manuals", "updates"];

/// Rows of a large transaction, and the size of each: more than a batch holds, so that it travels in parts.
const LARGE: (u64, usize) = (300, 10_000);

/// Number of a transaction that is large in any case.
const LARGE_AT: u64 = 20;

/// What a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// From account to account.
    Transfer,
    /// An account has another holder.
    Rename,
    /// A folder with documents.
    File,
    /// A document in a folder that somebody made.
    Add,
    /// A folder goes, and what is in it.
    Clear,
    /// A place that only one can have.
    Pin,
    /// A record that all write to.
    Contest,
    /// Many large rows.
    Load,
    /// Many rows go that this device once wrote.
    Unload,
}

impl Work {
    /// What is next, as the transaction of this number since the process was started.
    pub fn choose(number: u64, dice: &mut Dice) -> Self {
        // Whoever writes for a while writes a large one.
        if number == LARGE_AT {
            return Self::Load;
        }
        match dice.roll(60) {
            0..20 => Self::Transfer,
            20..25 => Self::Rename,
            25..34 => Self::File,
            34..40 => Self::Add,
            40..47 => Self::Clear,
            47..51 => Self::Pin,
            51..58 => Self::Contest,
            58 => Self::Load,
            _ => Self::Unload,
        }
    }

    /// Whether its changes stand or fall together.
    pub fn is_atomic(self, dice: &mut Dice) -> bool {
        self != Self::Transfer || dice.roll(2) == 0
    }
}

/// A transaction while it is being filled.
pub struct Filling<'t> {
    tx: &'t Transaction,
    dice: &'t mut Dice,
    deed: Deed,
}

impl<'t> Filling<'t> {
    /// Has written nothing yet.
    pub fn new(tx: &'t Transaction, dice: &'t mut Dice, name: &str) -> Self {
        Self { tx, dice, deed: Deed { name: name.to_owned(), wrote: Vec::new(), transfer: None } }
    }

    /// Runs the statements, and says what they came to.
    ///
    /// # Errors
    /// The database's: it does not take everything.
    pub async fn fill(mut self, work: Work, is_atomic: bool, device: &str) -> Result<Deed, DbErr> {
        let name = self.deed.name.clone();
        let journal = format!("INSERT INTO {JOURNAL} VALUES ('{name}', '{name}', '{work:?}')");
        self.write(JOURNAL, &name, true, &journal).await?;
        match work {
            Work::Transfer => self.transfer(is_atomic).await?,
            Work::Rename => {
                let account = format!("a{}", self.dice.roll(4));
                let sql = format!("UPDATE accounts SET holder = '{name}' WHERE id = '{account}'");
                self.write("accounts", &account, true, &sql).await?;
            }
            Work::File => {
                let folder = format!("f{name}");
                let sql = format!("INSERT INTO folders VALUES ('{folder}', '{name}', 'f0', NULL)");
                self.write("folders", &folder, true, &sql).await?;
                for k in 0..1 + self.dice.roll(4) {
                    self.add(&folder, k).await?;
                }
            }
            Work::Add => {
                let folder = self.any("SELECT id FROM folders").await?;
                self.add(folder.as_deref().unwrap_or("f0"), 0).await?;
            }
            Work::Clear => {
                if let Some(folder) = self.any("SELECT id FROM folders WHERE id <> 'f0'").await? {
                    let sql = format!("DELETE FROM folders WHERE id = '{folder}'");
                    self.write("folders", &folder, false, &sql).await?;
                }
            }
            Work::Pin => self.pin().await?,
            Work::Contest => {
                let table = CONTESTED[self.dice.roll(CONTESTED.len() as u64) as usize];
                let record = format!("s{}", self.dice.roll(2));
                let stays = self.dice.roll(4) > 0;
                let sql = match stays {
                    true => format!(
                        "INSERT INTO {table} VALUES ('{record}', '{name}', NULL)
                         ON CONFLICT (id) DO UPDATE SET x = excluded.x"
                    ),
                    false => format!("DELETE FROM {table} WHERE id = '{record}'"),
                };
                self.write(table, &record, stays, &sql).await?;
            }
            Work::Load => {
                let (count, size) = LARGE;
                for k in 0..count {
                    let record = format!("b{device}.{name}.{k}");
                    let sql = format!(
                        "INSERT INTO updates VALUES ('{record}', '{name}', printf('%.*c', {size}, 'x'))"
                    );
                    self.write("updates", &record, true, &sql).await?;
                }
            }
            Work::Unload => {
                let mine = format!("SELECT id FROM updates WHERE id GLOB 'b{device}.*'");
                for record in self.all(&mine).await? {
                    let sql = format!("DELETE FROM updates WHERE id = '{record}'");
                    self.write("updates", &record, false, &sql).await?;
                }
            }
        }
        Ok(self.deed)
    }

    async fn transfer(&mut self, is_atomic: bool) -> Result<(), DbErr> {
        let (from, by, amount) = (self.dice.roll(4), 1 + self.dice.roll(3), 1 + self.dice.roll(100) as i64);
        let (from, to) = (format!("a{from}"), format!("a{}", (from + by) % 4));
        for (account, amount) in [(&from, -amount), (&to, amount)] {
            let sql = format!(
                "UPDATE accounts SET balance = balance + {amount}, high = max(high, {amount}) WHERE id = '{account}'"
            );
            self.tx.execute_unprepared(&sql).await?;
            if is_atomic {
                let record = account.clone();
                self.deed.wrote.push(Wrote { table: "accounts".into(), record, value: Value::Moved });
            }
        }
        self.deed.transfer = Some((from, to, amount));
        Ok(())
    }

    async fn add(&mut self, folder: &str, k: u64) -> Result<(), DbErr> {
        let (name, record) = (self.deed.name.clone(), format!("d{}.{k}", self.deed.name));
        let sql = format!(
            "INSERT INTO docs (id, folder, title, body, reads) VALUES ('{record}', '{folder}', '{name}', NULL, 0)"
        );
        self.write("docs", &record, true, &sql).await
    }

    async fn pin(&mut self) -> Result<(), DbErr> {
        let pin = format!("p{}", self.dice.roll(3));
        let Some(doc) = self.any("SELECT id FROM docs").await?.filter(|_| self.dice.roll(3) > 0) else {
            let sql = format!("DELETE FROM pins WHERE id = '{pin}'");
            return self.write("pins", &pin, false, &sql).await;
        };
        // A place that others may have taken meanwhile; said with the name, it is like nothing before.
        let place = match self.dice.roll(3) {
            0 => format!("'{}'", self.deed.name),
            _ => format!("'place {}'", self.dice.roll(3)),
        };
        let sql = format!(
            "INSERT INTO pins VALUES ('{pin}', '{doc}', {place})
             ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, place = excluded.place"
        );
        let written = self.tx.execute_unprepared(&sql).await?.rows_affected() > 0;
        let is_own = place.contains(&self.deed.name);
        if written && is_own {
            let value = Value::Says(self.deed.name.clone());
            self.deed.wrote.push(Wrote { table: "pins".into(), record: pin, value });
        }
        Ok(())
    }

    /// Runs a statement, and notes what it made of the record if it did anything.
    async fn write(&mut self, table: &str, record: &str, stays: bool, sql: &str) -> Result<(), DbErr> {
        if self.tx.execute_unprepared(sql).await?.rows_affected() > 0 {
            let value = if stays { Value::Says(self.deed.name.clone()) } else { Value::Gone };
            self.deed.wrote.push(Wrote { table: table.into(), record: record.into(), value });
        }
        Ok(())
    }

    async fn all(&mut self, sql: &str) -> Result<Vec<String>, DbErr> {
        let rows = self.tx.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await?;
        rows.iter().map(|row| row.try_get_by(0)).collect()
    }

    async fn any(&mut self, sql: &str) -> Result<Option<String>, DbErr> {
        let mut all = self.all(sql).await?;
        if all.is_empty() {
            return Ok(None);
        }
        Ok(Some(all.swap_remove(self.dice.roll(all.len() as u64) as usize)))
    }
}
