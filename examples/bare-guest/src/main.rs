//! A virtual machine without an operating system: one task commits orders, another one sends them to
//! the host over vsock. What is not acknowledged lies on a virtual disk, and survives the machine.
//!
//! ```text
//!  boot     from the first instruction to `main`       machine  ports, console, clock, exit
//!  main     the two tasks, and what runs them          heap     the allocator
//!  vsock    connections to the host                    virtio   devices on the PCI bus
//!  disk     a virtual disk as flash memory
//! ```
//!
//! QEMU boots it by `-kernel`; `cargo xtask bare` does that, with a sequencer on the host, takes the
//! machine's power away in between, and compares the replica with what was committed.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod disk;
mod heap;
mod machine;
mod virtio;
mod vsock;

use core::{
    cell::{Cell, RefCell},
    fmt::Write,
    future::{Future, poll_fn},
    panic::PanicInfo,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use synddb_core::{
    Instant,
    device::{Alarm, AsyncDriver, Column, Device, DeviceConfig, DeviceError, FlashStorage, Table},
    transport::AsyncStreamTransport,
};

use crate::{
    disk::Disk,
    machine::{Console, exit, now},
    vsock::Vsock,
};

const ORDERS: Table = Table::new(
    "orders",
    &[Column::integer("id").key(), Column::text("item"), Column::integer("quantity")],
);
const STOCK: Table =
    Table::new("stock", &[Column::text("item").key(), Column::integer("quantity")]);

/// Orders in all, and the host's port.
const COUNT: u64 = 1000;
const PORT: u32 = 7100;

const FRAME: usize = 4096;
const REPLY: usize = 1024;
type Shop = Device<'static, FlashStorage<Disk, 8>, 4, FRAME>;
type Failure = DeviceError<virtio_drivers::Error>;

macro_rules! say {
    ($($what:tt)*) => { let _ = writeln!(Console, $($what)*); };
}

/// Called by the entry point in [`boot`].
extern "C" fn main() -> ! {
    let Some(disk) = Disk::open() else { fail("there is no disk") };
    let Some(vsock) = Vsock::open(PORT) else { fail("there is no vsock device") };
    let Ok(storage) = FlashStorage::open(disk) else { fail("the disk cannot be read") };
    let config = DeviceConfig {
        max_frame: FRAME,
        max_reply: REPLY,
        linger: Duration::from_millis(2),
        ..DeviceConfig::new("shop", [7; 32])
    };
    let shop = match Shop::open(config, &[ORDERS, STOCK], storage) {
        Ok(shop) => RefCell::new(shop),
        Err(error) => fail(error),
    };
    say!("starts after {} orders", shop.borrow().committed());

    let committed = Cell::new(false);
    let transport = AsyncStreamTransport::<_, REPLY>::new(vsock, 4);
    let mut driver = AsyncDriver::<_, FRAME, REPLY>::new(transport);
    let mut clock = Clock { committed: &committed };
    let mut drive = pin!(driver.run(&shop, &mut clock));
    let mut sell = pin!(sell(&shop, &committed));
    // The executor: both tasks in turn. Devices are polled, so that nobody has to be woken.
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(Err(error)) = drive.as_mut().poll(&mut context) {
            fail(error);
        }
        match sell.as_mut().poll(&mut context) {
            Poll::Pending => {}
            Poll::Ready(Err(error)) => fail(error),
            Poll::Ready(Ok(())) => {
                say!("the sequencer has {COUNT} orders");
                exit(true)
            }
        }
    }
}

/// Each order takes something out of the stock: an insert and an update, in one transaction.
async fn sell(shop: &RefCell<Shop>, committed: &Cell<bool>) -> Result<(), Failure> {
    loop {
        let done = shop.borrow().committed();
        if done == COUNT {
            break;
        }
        if shop.borrow().status().queued > 50 {
            pass().await;
            continue;
        }
        let id = done as i64 + 1;
        let quantity = id % 7 + 1;
        let in_stock = |after: i64| 100_000 - (1..=after).map(|id| id % 7 + 1).sum::<i64>();
        let stock = |after: i64| ["apple".into(), in_stock(after).into()];
        shop.borrow_mut().commit(now(), 0, |rows| {
            rows.insert(&ORDERS, &[id.into(), "apple".into(), quantity.into()])?;
            match done {
                0 => rows.insert(&STOCK, &stock(id)),
                _ => rows.update(&STOCK, &stock(id - 1), &stock(id)),
            }
        })?;
        committed.set(true);
        if id as u64 == COUNT / 2 {
            say!("half of the orders are committed");
        }
        pass().await;
    }
    while !shop.borrow().status().synced {
        pass().await;
    }
    shop.borrow_mut().save()
}

/// The driver's clock, which a commit wakes it by.
struct Clock<'c> {
    committed: &'c Cell<bool>,
}

impl Alarm for Clock<'_> {
    fn now(&self) -> Instant {
        now()
    }

    async fn wait(&mut self, until: Option<Instant>) {
        poll_fn(|_| {
            if self.committed.take() || until.is_some_and(|until| until <= now()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// Lets the other task run.
async fn pass() {
    let mut passed = false;
    poll_fn(
        |_| if core::mem::replace(&mut passed, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

fn fail(what: impl core::fmt::Display) -> ! {
    say!("failed: {what}");
    exit(false)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(info)
}
