// How many threads the calls of this library share their work between.

#include "threads.h"

extern "C" void gnomon_threads(int threads) { gnomon::Team::own().resize(threads < 1 ? 1 : size_t(threads)); }
