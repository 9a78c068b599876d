"""Networks: the hand-written UNet and its layers. Module names are the interface of transfer."""
