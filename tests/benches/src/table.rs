//! How figures are shown.

use std::fmt::Write;

use serde_json::{Value, json};

/// One benchmark's figures.
pub(crate) struct Table {
    /// What was done, with sizes and settings.
    pub(crate) setting: String,
    /// What the ratios are against.
    pub(crate) floor: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One figure.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    /// `None` where there is nothing to compare with.
    pub(crate) floor: Option<f64>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, ours: f64, floor: f64) -> Self {
        Self { what: what.into(), unit, ours, floor: Some(floor) }
    }

    pub(crate) fn alone(what: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self { what: what.into(), unit, ours, floor: None }
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.map(|floor| self.ours / floor)
    }
}

impl Table {
    pub(crate) fn text(&self, name: &str) -> String {
        let mut text = format!("{name}: {}\n  floor: {}\n", self.setting, self.floor);
        let _ = writeln!(text, "  {:<44} {:>7} {:>12} {:>12}", "", "ratio", "synddb", "floor");
        for row in &self.rows {
            let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let floor = row.floor.map_or(String::new(), figure);
            let what = format!("{} ({})", row.what, row.unit);
            let _ = writeln!(text, "  {what:<44} {ratio:>7} {:>12} {floor:>12}", figure(row.ours));
        }
        text
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let Row { what, unit, ours, floor } = row;
                json!({"what": what, "unit": unit, "ratio": row.ratio(), "synddb": ours,
                       "floor": floor})
            })
            .collect();
        json!({"bench": name, "setting": self.setting, "floor": self.floor, "figures": rows})
    }
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
