//! PCIe functions through VFIO and iommufd: registers, DMA mappings, interrupts, peer BARs; binding and claiming.
