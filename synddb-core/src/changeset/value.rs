/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Not part of the change: an unchanged column of an UPDATE.
    Undefined,
    /// SQL NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A real, never NaN.
    Real(f64),
    /// Text as SQLite holds it, which need not be valid UTF-8.
    Text(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
}

impl Value<'_> {
    /// Whether both are the same to the last bit: 0.0 is not -0.0, 1 is not 1.0.
    #[must_use]
    pub fn is_identical(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Undefined, Value::Undefined) | (Value::Null, Value::Null) => true,
            (Value::Integer(one), Value::Integer(two)) => one == two,
            (Value::Real(one), Value::Real(two)) => one.to_bits() == two.to_bits(),
            (Value::Text(one), Value::Text(two)) | (Value::Blob(one), Value::Blob(two)) => {
                one == two
            }
            _ => false,
        }
    }
}
