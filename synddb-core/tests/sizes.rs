//! What SIZES.md says about this target, if it is the one of its last column.
#![cfg(target_arch = "x86_64")]

use synddb_core::{
    device::{Device, FlashStorage, RamStorage},
    receiver::Receiver,
    sender::Sender,
    transport::SerialTransport,
};

#[test]
fn the_table_says_what_the_types_take() {
    let sizes = [
        size_of::<Sender<1>>(),
        size_of::<Sender<2>>(),
        size_of::<Sender<4>>(),
        size_of::<Sender<16>>(),
        size_of::<Receiver>(),
        size_of::<Device<'_, RamStorage<16, 1024>, 1, 600>>(),
        size_of::<FlashStorage<(), 4>>(),
        size_of::<SerialTransport<(), 512>>(),
    ];
    let rows = include_str!("../SIZES.md").lines().filter(|line| line.starts_with("| `"));
    let told: Vec<usize> = rows
        .map(|row| row.trim_end_matches(" |").rsplit(' ').next())
        .map(|last| last.and_then(|last| last.parse().ok()).expect("a number in the last column"))
        .collect();
    assert_eq!(told, sizes, "write these into SIZES.md");
}
