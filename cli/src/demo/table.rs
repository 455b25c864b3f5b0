//! What the books say, as tables for people.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::console::grouped;
use crate::demo::books::{Hop, Life};
use crate::rates::per_second;

/// A line for each life of each publisher, and their sum.
pub(crate) fn publishers(lives: &[Life]) -> String {
    let reasons: BTreeSet<&str> =
        lives.iter().flat_map(|life| life.account.dropped.keys()).map(String::as_str).collect();
    let mut heads = vec!["publisher", "sent", "delivered"];
    heads.extend(&reasons);
    if reasons.is_empty() {
        heads.push("dropped");
    }
    heads.extend(["in flight", "msgs/s"]);

    let cells = |name: String, sum: &Sum<'_>| {
        let mut cells = vec![name, grouped(sum.sent), grouped(sum.delivered)];
        cells.extend(
            reasons
                .iter()
                .map(|reason| grouped(sum.dropped.get(*reason).copied().unwrap_or_default())),
        );
        if reasons.is_empty() {
            cells.push("0".to_owned());
        }
        cells.extend([grouped(sum.lost), grouped(sum.rate)]);
        cells
    };
    let mut rows = Vec::new();
    let mut total = Sum::default();
    let mut longest = Duration::ZERO;
    for life in lives {
        let sum = Sum::of(life);
        let mark = match (life.killed, life.again) {
            (true, _) => " killed",
            (_, true) => " again",
            _ => "",
        };
        let address = life.endpoint.trim_start_matches("tcp://");
        rows.push(cells(format!("{} {address}{mark}", life.publisher), &sum));
        total.add(&sum);
        longest = longest.max(life.lasted);
    }
    total.rate = per_second(total.delivered, longest);
    rows.push(cells("total".to_owned(), &total));
    align(&heads, &rows)
}

/// A line for the workers of each publisher.
pub(crate) fn hops(hops: &BTreeMap<char, Hop>) -> String {
    let rows: Vec<_> = hops
        .iter()
        .map(|(publisher, hop)| {
            vec![publisher.to_string(), grouped(hop.pushed), grouped(hop.taken), grouped(hop.lost)]
        })
        .collect();
    align(&["workers of", "pushed", "taken", "in flight"], &rows)
}

#[derive(Default)]
struct Sum<'a> {
    sent: u64,
    delivered: u64,
    dropped: BTreeMap<&'a str, u64>,
    lost: u64,
    rate: u64,
}

impl<'a> Sum<'a> {
    fn of(life: &'a Life) -> Self {
        Self {
            sent: life.account.numbered,
            delivered: life.seen.delivered,
            dropped: life.account.dropped.iter().map(|(k, v)| (k.as_str(), *v)).collect(),
            lost: life.lost(),
            rate: per_second(life.seen.delivered, life.lasted),
        }
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.lost += other.lost;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
    }
}

/// The first column to the left, the others to the right, below heads of two lines and a rule.
fn align(heads: &[&str], rows: &[Vec<String>]) -> String {
    // the last word of a head stands below the others, so that columns are as narrow as numbers
    let split = |head: &&str| match head.rsplit_once(['_', ' ']) {
        Some((above, below)) if head != heads.first().unwrap_or(&"") => {
            (above.replace('_', " "), below.to_owned())
        }
        _ => (String::new(), (*head).to_owned()),
    };
    let (above, below): (Vec<String>, Vec<String>) = heads.iter().map(split).unzip();
    let all = || [&above, &below].into_iter().chain(rows);
    let width = |column| all().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..heads.len()).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
    [&above, &below, &rule].into_iter().chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::books::{Account, Seen};

    #[test]
    fn columns_are_aligned() {
        let life = |publisher, killed, sent: u64| Life {
            number: 1,
            publisher,
            endpoint: "tcp://127.0.0.1:5".into(),
            killed,
            again: false,
            lasted: Duration::from_secs(2),
            account: Account {
                numbered: sent,
                dropped: BTreeMap::from([("no_subscriber".to_owned(), sent / 10)]),
                ..Account::default()
            },
            seen: Seen { delivered: sent / 2, ..Seen::default() },
        };
        let table = publishers(&[life('A', false, 1000), life('B', true, 100)]);
        let expected = [
            "                                                  no      in",
            "  publisher              sent  delivered  subscriber  flight  msgs/s",
            "  --------------------  -----  ---------  ----------  ------  ------",
            "  A 127.0.0.1:5         1 000        500         100       0     250",
            "  B 127.0.0.1:5 killed    100         50          10      40      25",
            "  total                 1 100        550         110      40     275",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn hops_are_listed() {
        let hop = Hop { pushed: 5, taken: 3, lost: 2 };
        let table = hops(&BTreeMap::from([('A', hop)]));
        assert!(table.ends_with("  A                5      3       2"), "{table}");
    }
}
