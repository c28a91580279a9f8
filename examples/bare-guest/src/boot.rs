//! From the first instruction to `main`: the PVH entry, 64-bit mode with all addresses as they are,
//! a stack.

use core::arch::global_asm;

// QEMU's -kernel finds the entry in the Xen note and jumps there in 32-bit mode without paging. One
// table of 512 pages of 1 GiB each maps every address to itself, those of 64-bit devices too.
global_asm!(
    r#"
.section .note.Xen,"a",@note
  .long 4, 4, 18
  .asciz "Xen"
  .long _pvh
.section .text._pvh,"ax"
.code32
.globl _pvh
_pvh: cli
  movl $stack_top, %esp
  xorl %ecx, %ecx
1: movl %ecx, %eax
  shll $30, %eax
  orl $0x83, %eax
  movl %eax, pdpt(,%ecx,8)
  movl %ecx, %eax
  shrl $2, %eax
  movl %eax, pdpt+4(,%ecx,8)
  incl %ecx
  cmpl $512, %ecx
  jne 1b
  movl $pdpt+3, pml4
  movl $pml4, %eax
  movl %eax, %cr3
  movl %cr4, %eax
  orl $0x20, %eax
  movl %eax, %cr4
  movl $0xC0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax
  movl %eax, %cr0
  lgdt gdtr
  ljmp $8, $long_start
.code64
long_start:
  movw $16, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  call {main}
2: hlt
  jmp 2b
.section .data.boot,"aw"
.balign 16
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
  .long gdt
.section .bss.boot,"aw",@nobits
.balign 4096
pml4: .skip 4096
pdpt: .skip 4096
  .skip 262144
stack_top:
"#,
    main = sym crate::main,
    options(att_syntax)
);
