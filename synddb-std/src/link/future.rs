//! The link as a future for the user's own runtime.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Carrier, Link, LinkState};
use crate::shared::Shared;

/// Ships the commits of a database: the link, for a tokio runtime with its I/O and time enabled. It
/// ends when the database is shut down.
///
/// Between two waits it reads up to [`max_batch_size`](crate::Config::max_batch_size) from the
/// outbox, a local file, and compresses it; a [`TokenProvider`](crate::TokenProvider) is asked on the
/// runtime's blocking threads.
///
/// Dropping it before that loses nothing: what is not acknowledged stays queued and goes once the
/// database is attached again. [`Stats::link`](crate::Stats::link) is
/// [`NotDriven`](LinkState::NotDriven) from then on, as it is before the future is first polled, and
/// [`push`](crate::SyndDB::push) says so at once.
#[must_use = "nothing is shipped unless it is spawned"]
pub struct LinkFuture {
    run: Pin<Box<dyn Future<Output = ()> + Send>>,
    shared: Arc<Shared>,
    span: tracing::Span,
    is_driven: bool,
}

impl LinkFuture {
    pub(crate) fn new(link: Link<impl Carrier + 'static>) -> Self {
        let (shared, span) = (Arc::clone(&link.shared), link.span());
        shared.link_is(|state, _| *state = LinkState::NotDriven);
        Self { run: Box::pin(link.run()), shared, span, is_driven: false }
    }
}

impl Future for LinkFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.is_driven {
            this.is_driven = true;
            this.shared.link_is(|state, _| *state = LinkState::Connecting);
        }
        let _span = this.span.enter();
        let polling = Polling(&this.shared);
        let outcome = this.run.as_mut().poll(context);
        // Not reached where it panics.
        mem::forget(polling);
        outcome
    }
}

/// Tells of a panic, as the threads do.
struct Polling<'s>(&'s Shared);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.died("synddb-link");
    }
}

impl Drop for LinkFuture {
    fn drop(&mut self) {
        self.shared.link_dropped();
    }
}

impl fmt::Debug for LinkFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkFuture").field("is_driven", &self.is_driven).finish_non_exhaustive()
    }
}
