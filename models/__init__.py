"""Networks: the hand-written UNets and their layers, and others' weights under our names. Module
names are the interface of transfer."""
