//! Finds frames in a stream of bytes that comes in pieces of any size.

use super::{
    WireError,
    header::{self, Header},
};

/// Gathers bytes in the caller's buffer until they make a frame.
///
/// The buffer's length is the longest frame that is accepted. After an error the stream cannot be
/// trusted any more: nothing marks where the next frame begins, so close the connection.
#[derive(Debug)]
pub struct Accumulator<B> {
    buffer: B,
    len: usize,
    /// Length of the frame at the front that was handed out and is to be dropped.
    taken: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Accumulator<B> {
    /// An accumulator over `buffer`, at least as long as a header.
    pub const fn new(buffer: B) -> Self {
        Self { buffer, len: 0, taken: 0 }
    }

    /// The free part of the buffer: read from the link into its start, then call
    /// [`filled`](Self::filled). Never empty before a whole frame is there.
    pub fn space(&mut self) -> &mut [u8] {
        self.drop_taken();
        &mut self.buffer.as_mut()[self.len..]
    }

    /// `count` bytes were read into the [`space`](Self::space).
    pub fn filled(&mut self, count: usize) {
        self.len = (self.len + count).min(self.buffer.as_ref().len());
    }

    /// How many bytes are missing to the next frame, as far as the bytes here tell: reading no
    /// more than that keeps frames from being moved about in the buffer.
    ///
    /// # Errors
    /// Those of [`Header::read`] but `Truncated`.
    pub fn missing(&self) -> Result<usize, WireError> {
        let bytes = &self.buffer.as_ref()[self.taken..self.len];
        match Header::read(bytes, self.buffer.as_ref().len()) {
            Ok(header) => Ok(header.frame_len().saturating_sub(bytes.len())),
            Err(WireError::Truncated) => Ok(header::LEN - bytes.len()),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame, if it is here; its checksum is not checked yet.
    ///
    /// # Errors
    /// Those of [`Header::read`] but `Truncated`.
    pub fn frame(&mut self) -> Result<Option<&[u8]>, WireError> {
        self.drop_taken();
        if self.missing()? > 0 {
            return Ok(None);
        }
        let header = Header::read(&self.buffer.as_ref()[..self.len], self.buffer.as_ref().len())?;
        self.taken = header.frame_len();
        Ok(Some(&self.buffer.as_ref()[..self.taken]))
    }

    /// Forgets everything, for a new connection.
    pub fn clear(&mut self) {
        self.len = 0;
        self.taken = 0;
    }

    /// Whether part of a frame is here.
    pub fn is_mid_frame(&self) -> bool {
        self.len > self.taken
    }

    fn drop_taken(&mut self) {
        if self.taken > 0 {
            self.buffer.as_mut().copy_within(self.taken..self.len, 0);
            self.len -= self.taken;
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;

    #[test]
    fn frames_come_out_whole_however_the_bytes_come_in() {
        let mut stream = [0; 64];
        let first = Message::Ping.encode(1, &mut stream).expect("fits");
        let both = first + Message::Ping.encode(2, &mut stream[first..]).expect("fits");
        for step in 1..=both {
            let mut accumulator = Accumulator::new([0; 50]);
            let mut tags = heapless::Vec::<u32, 4>::new();
            for piece in stream[..both].chunks(step) {
                let mut piece = piece;
                while !piece.is_empty() {
                    let space = accumulator.space();
                    let count = piece.len().min(space.len());
                    space[..count].copy_from_slice(&piece[..count]);
                    accumulator.filled(count);
                    piece = &piece[count..];
                    while let Some(frame) = accumulator.frame().expect("frames") {
                        tags.push(Message::decode(frame, 50).expect("decodes").0).expect("two");
                    }
                }
            }
            assert_eq!(tags, [1, 2], "in steps of {step}");
        }
    }

    #[test]
    fn a_frame_longer_than_the_buffer_is_refused_by_its_header() {
        let mut frame = [0; 100];
        header::seal(&mut frame, header::Kind::Ping, 0).expect("fits");
        let mut accumulator = Accumulator::new([0; 50]);
        accumulator.space()[..header::LEN].copy_from_slice(&frame[..header::LEN]);
        accumulator.filled(header::LEN);
        assert_eq!(accumulator.frame(), Err(WireError::TooLarge { len: 100, limit: 50 }));
    }
}
