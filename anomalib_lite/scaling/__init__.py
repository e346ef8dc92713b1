"""Work cut into chunks of images, done by the processes and machines of whichever backend joblib is told to use."""
