//! Moves a device's frames over a transport: blocking, and in the style of async runtimes.

use core::{cell::RefCell, future::Future, pin::pin, task::Poll, time::Duration};

use super::{Device, DeviceError, Step, Storage};
use crate::{
    Instant,
    transport::{AsyncTransport, Transport, TransportError},
};

/// Moves a [`Device`]'s frames over a blocking [`Transport`]; `FRAME` and `REPLY` are the lengths of
/// its buffers, the device's `max_frame` and `max_reply`.
///
/// Call [`turn`](Self::turn) for ever, and commit between the calls.
#[derive(Debug)]
pub struct Driver<T, const FRAME: usize, const REPLY: usize> {
    transport: T,
    connected: bool,
    frame: [u8; FRAME],
    reply: [u8; REPLY],
}

impl<T: Transport, const FRAME: usize, const REPLY: usize> Driver<T, FRAME, REPLY> {
    /// A driver over `transport`.
    pub const fn new(transport: T) -> Self {
        Self { transport, connected: false, frame: [0; FRAME], reply: [0; REPLY] }
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Sends what is to be sent, then waits up to `wait` for an answer, where one is to come.
    /// `clock` tells the time. Gives the moment before which nothing is to be done unless something
    /// is committed: now, where an answer is still to come; `None` where only a commit helps.
    ///
    /// # Errors
    /// Those of [`Device::poll_step`]: failures of the link are seen to.
    pub fn turn<S: Storage, const WINDOW: usize, const ENTRY: usize>(
        &mut self,
        device: &mut Device<'_, S, WINDOW, ENTRY>,
        mut clock: impl FnMut() -> Instant,
        wait: Duration,
    ) -> Result<Option<Instant>, DeviceError<S::Error>> {
        self.send(device, &mut clock)?;
        if self.connected && device.awaits_reply() {
            let now = clock();
            let until = device.poll_timeout().map_or(wait, |at| at.since(now).min(wait));
            match self.transport.recv(&mut self.reply, until) {
                Ok(Some(len)) => {
                    // What is no frame ended the connection; the status tells.
                    let _ = device.handle_frame(clock(), &self.reply[..len]);
                    self.send(device, &mut clock)?;
                }
                Ok(None) => {}
                Err(error) => {
                    device.handle_disconnected(clock(), error.kind(), error.retry_after());
                }
            }
        }
        if self.connected && device.awaits_reply() {
            return Ok(Some(clock()));
        }
        Ok(device.poll_timeout())
    }

    fn send<S: Storage, const WINDOW: usize, const ENTRY: usize>(
        &mut self,
        device: &mut Device<'_, S, WINDOW, ENTRY>,
        clock: &mut impl FnMut() -> Instant,
    ) -> Result<(), DeviceError<S::Error>> {
        while let Some(step) = device.poll_step(clock(), &mut self.frame)? {
            let done = match step {
                Step::Close => {
                    self.transport.close();
                    self.connected = false;
                    Ok(())
                }
                Step::Connect => self.transport.connect().map(|()| {
                    self.connected = true;
                    device.handle_connected(clock(), self.transport.max_in_flight());
                }),
                Step::Send(len) => self.transport.send(&self.frame[..len]),
            };
            if let Err(error) = done {
                device.handle_disconnected(clock(), error.kind(), error.retry_after());
            }
        }
        Ok(())
    }
}

/// A device that several tasks use: locked for moments, never across an `await`.
///
/// `RefCell` is one, for tasks of one executor; of a mutex of another crate it takes one line.
pub trait Shared<D> {
    /// Calls `f` with the device.
    fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R;
}

impl<D> Shared<D> for RefCell<D> {
    fn with<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        f(&mut self.borrow_mut())
    }
}

/// The clock of an [`AsyncDriver`]. With embassy, where `COMMITTED` is a signal that tasks set after a
/// commit:
///
/// ```text
/// fn now(&self) -> Instant {
///     Instant::from_micros(embassy_time::Instant::now().as_micros())
/// }
///
/// async fn wait(&mut self, until: Option<Instant>) {
///     match until.map(|at| embassy_time::Instant::from_micros(at.as_micros())) {
///         Some(at) => drop(select(Timer::at(at), COMMITTED.wait()).await),
///         None => COMMITTED.wait().await,
///     }
/// }
/// ```
pub trait Alarm {
    /// The time.
    fn now(&self) -> Instant;

    /// Returns at `until`, or before that when something was committed (a signal, a channel), or
    /// whenever it likes. Without `until` only the latter.
    fn wait(&mut self, until: Option<Instant>) -> impl Future<Output = ()>;
}

/// Moves a [`Device`]'s frames over an [`AsyncTransport`], of no particular runtime; see [`Driver`].
#[derive(Debug)]
pub struct AsyncDriver<T, const FRAME: usize, const REPLY: usize> {
    transport: T,
    connected: bool,
    frame: [u8; FRAME],
    reply: [u8; REPLY],
}

/// What ended first.
enum First<O> {
    Reply(O),
    Alarm,
}

impl<T: AsyncTransport, const FRAME: usize, const REPLY: usize> AsyncDriver<T, FRAME, REPLY> {
    /// A driver over `transport`.
    pub const fn new(transport: T) -> Self {
        Self { transport, connected: false, frame: [0; FRAME], reply: [0; REPLY] }
    }

    /// Drives `device` for ever; other tasks commit to it meanwhile.
    ///
    /// # Errors
    /// Those of [`Device::poll_step`]: failures of the link are seen to.
    pub async fn run<S: Storage, const WINDOW: usize, const ENTRY: usize>(
        &mut self,
        device: &impl Shared<Device<'_, S, WINDOW, ENTRY>>,
        alarm: &mut impl Alarm,
    ) -> Result<core::convert::Infallible, DeviceError<S::Error>> {
        loop {
            self.turn(device, alarm).await?;
        }
    }

    /// Sends what is to be sent, and waits for an answer or the alarm.
    ///
    /// # Errors
    /// Those of [`Device::poll_step`]: failures of the link are seen to.
    pub async fn turn<S: Storage, const WINDOW: usize, const ENTRY: usize>(
        &mut self,
        device: &impl Shared<Device<'_, S, WINDOW, ENTRY>>,
        alarm: &mut impl Alarm,
    ) -> Result<(), DeviceError<S::Error>> {
        while let Some(step) = device.with(|d| d.poll_step(alarm.now(), &mut self.frame))? {
            let done = match step {
                Step::Close => {
                    self.transport.close();
                    self.connected = false;
                    Ok(())
                }
                Step::Connect => {
                    let connected = self.transport.connect().await;
                    connected.map(|()| {
                        self.connected = true;
                        let window = self.transport.max_in_flight();
                        device.with(|d| d.handle_connected(alarm.now(), window));
                    })
                }
                Step::Send(len) => self.transport.send(&self.frame[..len]).await,
            };
            if let Err(error) = done {
                let (kind, retry_after) = (error.kind(), error.retry_after());
                device.with(|d| d.handle_disconnected(alarm.now(), kind, retry_after));
            }
        }
        let until = device.with(|d| d.poll_timeout());
        if !self.connected {
            alarm.wait(until).await;
            return Ok(());
        }
        // A dropped `recv` loses no frame, so that both can be waited for.
        let first = first(self.transport.recv(&mut self.reply), alarm.wait(until)).await;
        match first {
            First::Alarm => Ok(()),
            First::Reply(Ok(len)) => {
                // What is no frame ended the connection; the status tells.
                let _ = device.with(|d| d.handle_frame(alarm.now(), &self.reply[..len]));
                Ok(())
            }
            First::Reply(Err(error)) => {
                let (kind, retry_after) = (error.kind(), error.retry_after());
                device.with(|d| d.handle_disconnected(alarm.now(), kind, retry_after));
                Ok(())
            }
        }
    }
}

/// Waits for either of two; answers come before the alarm.
async fn first<O>(reply: impl Future<Output = O>, alarm: impl Future<Output = ()>) -> First<O> {
    let (mut reply, mut alarm) = (pin!(reply), pin!(alarm));
    core::future::poll_fn(|context| {
        if let Poll::Ready(reply) = reply.as_mut().poll(context) {
            return Poll::Ready(First::Reply(reply));
        }
        alarm.as_mut().poll(context).map(|()| First::Alarm)
    })
    .await
}
