//! SQL as SQLite stores it in its schema, cut into tokens: as much of a parser as it takes to change a column's type
//! and leave every other byte as it was.

use std::ops::Range;

/// A piece of SQL; blanks and comments lie between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'s> {
    pub(super) kind: Kind,
    /// As it stands in the text, quotes included.
    pub(super) text: &'s str,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bare word: a keyword or a name.
    Word,
    /// A name in double quotes, backticks or brackets.
    Quoted,
    /// A string in single quotes. Where only a name can stand, SQLite takes it for one.
    Text,
    /// A number or a blob.
    Literal,
    /// Anything else: a bracket, a comma, an operator.
    Mark,
}

/// Operators of two characters.
const PAIRS: [&str; 9] = ["==", "<>", "!=", "<=", ">=", "||", "->", "<<", ">>"];

impl<'s> Token<'s> {
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    pub(super) fn is_one_of(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is_word(word))
    }

    pub(super) fn is_mark(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }

    /// Whether it is this name, quoted or not.
    pub(super) fn is_name(&self, name: &str) -> bool {
        match self.kind {
            Kind::Word => self.text.eq_ignore_ascii_case(name),
            Kind::Quoted | Kind::Text => {
                let (quote, inner) = self.text.split_at(1);
                let inner = inner.get(..inner.len().saturating_sub(1)).unwrap_or_default();
                inner.replace(&quote.repeat(2), quote).eq_ignore_ascii_case(name)
            }
            Kind::Literal | Kind::Mark => false,
        }
    }

    /// Where it stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }
}

/// All tokens of a text. One that ends in the middle of a token ends with what there is: SQLite stored it, so there is
/// none such.
pub(super) fn tokens(sql: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = sql[at..].chars().next() {
        let rest = &sql[at..];
        let (kind, length) = match first {
            c if c.is_ascii_whitespace() => (None, 1),
            _ if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            _ if rest.starts_with("/*") => (None, rest[2..].find("*/").map_or(rest.len(), |end| end + 4)),
            '\'' => (Some(Kind::Text), quoted(rest, '\'')),
            '"' | '`' => (Some(Kind::Quoted), quoted(rest, first)),
            '[' => (Some(Kind::Quoted), rest.find(']').map_or(rest.len(), |end| end + 1)),
            'x' | 'X' if rest[1..].starts_with('\'') => (Some(Kind::Literal), 1 + quoted(&rest[1..], '\'')),
            c if c.is_ascii_digit() => {
                (Some(Kind::Literal), run(rest, |c| c.is_ascii_alphanumeric() || c == '.'))
            }
            c if is_name(c) => (Some(Kind::Word), run(rest, is_name)),
            _ if PAIRS.iter().any(|pair| rest.starts_with(pair)) => (Some(Kind::Mark), 2),
            c => (Some(Kind::Mark), c.len_utf8()),
        };
        found.extend(kind.map(|kind| Token { kind, text: &rest[..length], at }));
        at += length;
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Length of what stands in quotes, a doubled quote being one of its characters.
fn quoted(text: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(next) = text[at..].find(quote) {
        at += next + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    text.len()
}

/// Index of the bracket that closes the one at `open`; the end where there is none.
pub(super) fn closing(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        if token.is_mark("(") {
            depth += 1;
        } else if token.is_mark(")") {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return i;
            }
        }
    }
    tokens.len()
}

/// The parts between commas that are in no brackets of their own.
pub(super) fn parts<'t, 's>(tokens: &'t [Token<'s>]) -> Vec<&'t [Token<'s>]> {
    let (mut parts, mut from, mut i) = (Vec::new(), 0, 0);
    while i < tokens.len() {
        if tokens[i].is_mark("(") {
            i = closing(tokens, i);
        } else if tokens[i].is_mark(",") {
            parts.push(&tokens[from..i]);
            from = i + 1;
        }
        i += 1;
    }
    parts.push(&tokens[from.min(tokens.len())..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_texts_and_comments_are_told_apart() {
        let sql = "CREATE TABLE \"a \"\"b\" (-- no, (\n[c d] INTEGER/* , */DEFAULT 'it''s', `e` BLOB DEFAULT x'00', é <> 1.5e3)";
        let texts: Vec<&str> = tokens(sql).iter().map(|token| token.text).collect();
        assert_eq!(
            texts,
            [
                "CREATE",
                "TABLE",
                "\"a \"\"b\"",
                "(",
                "[c d]",
                "INTEGER",
                "DEFAULT",
                "'it''s'",
                ",",
                "`e`",
                "BLOB",
                "DEFAULT",
                "x'00'",
                ",",
                "é",
                "<>",
                "1.5e3",
                ")"
            ]
        );
        assert!(tokens(sql)[2].is_name("A \"B"));
        assert!(tokens(sql)[4].is_name("c d"));
        assert!(!tokens(sql)[4].is_word("c d"));
    }

    #[test]
    fn a_text_that_breaks_off_does_no_harm() {
        for sql in ["'", "\"a", "[", "x'", "/*", "--", "a(b,(c", "", "é'é"] {
            let found = tokens(sql);
            parts(&found);
            for (i, token) in found.iter().enumerate() {
                closing(&found, i);
                let _ = token.is_name("a");
            }
        }
    }
}
