//! Faults that tests switch on, to show that the fuzzer finds them. Nothing in any other build.

/// A remedy that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Savepoints that are rolled back stay in the journal.
    SkippedRollback,
    /// One row event in seven is not written down.
    LostEvent,
    /// A row that was deleted is still there in the net effect.
    WrongNetEffect,
    /// The join may write, and is not prepared again after the schema has changed.
    StaleJoin,
    /// A changed schema is followed by its rows, but not by its definitions.
    ForgottenDefinition,
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Switches a fault on or off, for this thread.
#[cfg(test)]
pub(crate) fn sabotage(fault: Option<Sabotage>) {
    ACTIVE.set(fault);
}

pub(super) fn sabotaged(fault: Sabotage) -> bool {
    #[cfg(test)]
    {
        ACTIVE.get() == Some(fault)
    }
    #[cfg(not(test))]
    {
        let _ = fault;
        false
    }
}
