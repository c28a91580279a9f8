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

impl From<i64> for Value<'_> {
    fn from(integer: i64) -> Self {
        Value::Integer(integer)
    }
}

impl From<f64> for Value<'_> {
    fn from(real: f64) -> Self {
        Value::Real(real)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Value::Blob(bytes)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}
