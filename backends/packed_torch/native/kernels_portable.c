/* The kernels in plain C. */
#include "instructions.h"

#define INTEGERS 0

#include "numbers.h"
#include "lanes_portable.h"
#include "unpacking.h"
#include "codes.h"
#include "product.h"
#include "scratch.h"
#include "rows.h"
#include "planes.h"

const Kernels kernels_portable = {"portable", prepare, multiply, dequantize,
                                prepare_planes, multiply_planes, dequantize_planes};
