//! Nothing of its own: its tests are the workspace's, and what is proved is that the core passes them
//! without its features `alloc` and `std`.
#![no_std]
