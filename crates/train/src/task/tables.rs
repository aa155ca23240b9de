//! Real tables, cut into groups of comparable numbers; a chart shows four numbers of one group.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::{IndexedRandom, index};
use rand_chacha::ChaCha8Rng;

use super::{Error, HIGHEST_LEVEL, ITEMS, Reading, Split};

/// Numbers that belong on one chart.
#[derive(Debug)]
struct Group {
    title: String,
    items: Vec<(String, f64)>,
}

/// Tables are equally likely, whatever their size, and so are the groups of one.
type Table = Vec<Group>;

/// The tables of both splits.
#[derive(Debug)]
pub(super) struct Tables {
    train: Vec<Table>,
    held_out: Vec<Table>,
}

impl Tables {
    pub(super) fn read() -> Result<Self, Error> {
        let employment = File::parse("us-employment.csv", include_str!("../../data/us-employment.csv"))?;
        let unemployment = File::parse("us-unemployment.csv", include_str!("../../data/us-unemployment.csv"))?;
        let weather = File::parse("seattle-weather.csv", include_str!("../../data/seattle-weather.csv"))?;
        let countries = File::parse("gapminder.csv", include_str!("../../data/gapminder.csv"))?;
        let health = File::parse("gapminder-health.csv", include_str!("../../data/gapminder-health.csv"))?;
        let electricity = File::parse("iowa-electricity.csv", include_str!("../../data/iowa-electricity.csv"))?;
        Ok(Self {
            train: vec![
                employment.yearly_changes("Job growth by sector")?,
                unemployment.rows("Unemployment by industry")?,
                [
                    weather.grouped(|row| format!("Daily high in Seattle, {}", row[0]), 1, 2)?,
                    weather.grouped(|row| format!("Wind by day in Seattle, {}", row[0]), 1, 3)?,
                ]
                .into_iter()
                .flatten()
                .collect(),
            ],
            held_out: vec![
                [
                    countries.grouped(|row| format!("Life expectancy, {}, {}", row[0], row[1]), 2, 3)?,
                    countries.grouped(|row| format!("Births per woman, {}, {}", row[0], row[1]), 2, 4)?,
                ]
                .into_iter()
                .flatten()
                .collect(),
                health.grouped(|row| format!("Life expectancy, {}", row[0]), 1, 2)?,
                electricity.grouped(|row| format!("Iowa electricity by year, {}", row[0]), 1, 2)?,
            ],
        })
    }

    /// Four different numbers of one group, rescaled to the levels of an axis that reaches past them by a random margin
    /// and rounded. The order of the items is random, so that no position is more likely to be the highest.
    pub(super) fn reading(&self, split: Split, random: &mut ChaCha8Rng) -> Reading {
        let tables = match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        };
        loop {
            let group =
                tables.choose(random).and_then(|table| table.choose(random)).expect("tables and groups are not empty");
            let chosen: [usize; ITEMS] =
                index::sample_array(random, group.items.len()).expect("groups have enough items");
            let numbers = chosen.map(|item| group.items[item].1);
            if let Some(values) = levels(numbers, random) {
                return Reading {
                    title: group.title.clone(),
                    items: chosen.map(|item| group.items[item].0.clone()),
                    values,
                };
            }
        }
    }
}

/// Reads numbers off an axis of [`HIGHEST_LEVEL`] steps that extends past the smallest and the largest number by up to
/// 70 % of their range. `None` when all numbers are equal.
fn levels(numbers: [f64; ITEMS], random: &mut ChaCha8Rng) -> Option<[u8; ITEMS]> {
    let smallest = numbers.into_iter().fold(f64::INFINITY, f64::min);
    let largest = numbers.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let range = largest - smallest;
    if range < 1e-9 {
        return None;
    }
    let bottom = smallest - random.random_range(0.0..0.7) * range;
    let top = largest + random.random_range(0.0..0.7) * range;
    Some(numbers.map(|number| (f64::from(HIGHEST_LEVEL) * (number - bottom) / (top - bottom)).round() as u8))
}

/// A comma-separated file with a header.
struct File {
    name: &'static str,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl File {
    fn parse(name: &'static str, text: &str) -> Result<Self, Error> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let fields = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
        let damaged = |error: csv::Error| Error::Table { table: name, problem: error.to_string() };
        let header = fields(reader.headers().map_err(damaged)?);
        let rows = reader.records().map(|record| record.map(|record| fields(&record)));
        Ok(Self { name, header, rows: rows.collect::<Result<_, _>>().map_err(damaged)? })
    }

    fn number(&self, row: &[String], column: usize) -> Result<f64, Error> {
        row[column].parse().map_err(|error| Error::Table {
            table: self.name,
            problem: format!("{} in row {row:?}: {error}", self.header[column]),
        })
    }

    /// The columns after the first, as numbers, of every row.
    fn numbers(&self) -> Result<Vec<Vec<f64>>, Error> {
        let columns = 1..self.header.len();
        self.rows.iter().map(|row| columns.clone().map(|column| self.number(row, column)).collect()).collect()
    }

    fn named(&self, numbers: impl IntoIterator<Item = f64>) -> Vec<(String, f64)> {
        self.header[1..].iter().cloned().zip(numbers).collect()
    }

    /// A group for every row; the columns after the first are its items.
    fn rows(&self, title: &str) -> Result<Table, Error> {
        let groups = self.rows.iter().zip(self.numbers()?);
        groups.map(|(row, numbers)| self.group(&format!("{title}, {}", row[0]), self.named(numbers))).collect()
    }

    /// A group for every month from the second year on: the growth of every column since the same month a year before.
    fn yearly_changes(&self, title: &str) -> Result<Table, Error> {
        let numbers = self.numbers()?;
        let years = numbers.iter().zip(numbers.iter().skip(12)).zip(self.rows.iter().skip(12));
        years
            .map(|((before, now), row)| {
                let growth = now.iter().zip(before).map(|(now, before)| now / before - 1.0);
                self.group(&format!("{title}, {}", row[0]), self.named(growth))
            })
            .collect()
    }

    /// A group for all rows of the same title.
    fn grouped(&self, title: impl Fn(&[String]) -> String, item: usize, value: usize) -> Result<Table, Error> {
        let mut groups = BTreeMap::<String, Vec<(String, f64)>>::new();
        for row in &self.rows {
            groups.entry(title(row)).or_default().push((row[item].clone(), self.number(row, value)?));
        }
        groups.into_iter().map(|(title, items)| self.group(&title, items)).collect()
    }

    /// Refuses groups that no chart can be drawn from, so that drawing examples needs no checks.
    fn group(&self, title: &str, items: Vec<(String, f64)>) -> Result<Group, Error> {
        // Said on every chart, because its axis does not carry the table's own unit.
        let title = format!("{title} (index)");
        let first = items.first().map_or(f64::NAN, |(_, number)| *number);
        if items.len() < ITEMS || items.iter().all(|(_, number)| (number - first).abs() < 1e-9) {
            return Err(Error::Table { table: self.name, problem: format!("{title} has too few different numbers") });
        }
        Ok(Group { title, items })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use plotters::style::IntoFont;
    use rand::SeedableRng;

    use super::super::sheet::{FONT_FAMILY, PICTURE_WIDTH, TITLE_LEFT, TITLE_SIZE, register_font};
    use super::*;

    #[test]
    fn splits_share_no_title() {
        let tables = Tables::read().unwrap();
        let titles = |tables: &[Table]| -> BTreeSet<String> {
            tables.iter().flatten().map(|group| group.title.clone()).collect()
        };
        let (train, held_out) = (titles(&tables.train), titles(&tables.held_out));
        assert_eq!((train.len(), held_out.len()), (326, 141));
        assert!(train.is_disjoint(&held_out));
    }

    #[test]
    fn every_title_fits_on_the_picture() {
        register_font().unwrap();
        let tables = Tables::read().unwrap();
        for group in tables.train.iter().chain(&tables.held_out).flatten() {
            let (width, _) = (FONT_FAMILY, TITLE_SIZE).into_font().box_size(&group.title).unwrap();
            assert!(TITLE_LEFT as u32 + width < PICTURE_WIDTH, "{}: {width} pixels", group.title);
        }
    }

    #[test]
    fn growth_is_relative_to_the_same_month_a_year_before() {
        let months: Vec<String> = (0..13).map(|month| format!("m{month},{},50,20,80", 100 + month)).collect();
        let file = File::parse("test", &format!("month,a,b,c,d\n{}", months.join("\n"))).unwrap();
        let table = file.yearly_changes("Growth").unwrap();
        assert_eq!(table.len(), 1);
        assert_eq!(table[0].title, "Growth, m12 (index)");
        assert_eq!(table[0].items[0].0, "a");
        assert!((table[0].items[0].1 - 0.12).abs() < 1e-12, "112 / 100 - 1");
        assert!(table[0].items[1].1.abs() < 1e-12);
    }

    #[test]
    fn levels_keep_the_order_and_stay_on_the_axis() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..200 {
            let [a, b, c, d] = levels([1.0, 2.0, 3.0, 4.0], &mut random).unwrap();
            assert!(a <= b && b <= c && c <= d && d - a >= 2 && d <= HIGHEST_LEVEL, "{:?}", [a, b, c, d]);
        }
        assert_eq!(levels([7.0; ITEMS], &mut random), None);
    }

    #[test]
    fn damaged_tables_are_named() {
        let file = File::parse("broken.csv", "region,country,health\nNowhere,A,1\nNowhere,B,x\n").unwrap();
        let error = file.grouped(|row| row[0].clone(), 1, 2).unwrap_err().to_string();
        assert!(error.contains("broken.csv") && error.contains('x'), "{error}");
        let file = File::parse("short.csv", "region,country,health\nNowhere,A,1\nNowhere,B,2\n").unwrap();
        assert!(file.grouped(|row| row[0].clone(), 1, 2).unwrap_err().to_string().contains("too few"));
    }
}
