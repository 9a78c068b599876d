"""Which layers to train with the images at hand: python train.py -m +experiment=which_layers
data.path=MY_IMAGES. Each strategy at rates that have the same trials, each with the moment to stop
that images chose which it was not trained on, judged on images that chose nothing."""
