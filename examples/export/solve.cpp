// Solves with a file that deqlm.export wrote; no Python is there. See README.md.

#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <filesystem>
#include <fstream>
#include <iostream>

int main(int argc, char** argv) {
    if (argc != 6) {
        std::cerr << "usage: solve MODEL.pt2 INPUT ROWS WIDTH OUTPUT  (float32 numbers, as tensor.numpy().tofile writes them)\n";
        return 2;
    }
    const std::string model = argv[1];
    const std::string operators = std::filesystem::absolute(model).replace_extension(".ops.so");
    if (!dlopen(operators.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
        std::cerr << dlerror() << "\n";
        return 1;
    }
    torch::inductor::AOTIModelPackageLoader solve(model);
    at::Tensor x = at::empty({std::stoll(argv[3]), std::stoll(argv[4])});
    std::ifstream(argv[2], std::ios::binary).read(static_cast<char*>(x.data_ptr()), x.nbytes());

    const std::vector<at::Tensor> out = solve.run({x});

    const at::Tensor z = out[0].contiguous(), status = out[1], steps = out[2], residual = out[3];
    std::ofstream(argv[5], std::ios::binary).write(static_cast<const char*>(z.data_ptr()), z.nbytes());
    for (int64_t row = 0; row < z.size(0); ++row)
        std::cout << "row " << row << ": status " << status[row].item<int>() << " after " << steps[row].item<int64_t>()
                  << " evaluations, residual " << residual[row].item<double>() << "\n";
}
