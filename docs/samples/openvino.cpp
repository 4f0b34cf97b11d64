// Explains one image with OpenVINO:  sample MODEL INPUT CLASS OUTPUT
//
// MODEL is written by `onnx-gradcam attach --for openvino`, INPUT holds the preprocessed image as float32 numbers in the
// order of the model's input. The heatmap is written to OUTPUT as float32, row by row.

#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>

#include <openvino/openvino.hpp>

namespace {

ov::Tensor read(const char* path, const ov::Shape& shape) {
    ov::Tensor image(ov::element::f32, shape);
    std::ifstream file(path, std::ios::binary);
    auto size = static_cast<std::streamsize>(image.get_byte_size());
    if (!file.read(static_cast<char*>(image.data()), size) || file.peek() != EOF) {
        throw std::runtime_error("the input has another size than the model's image");
    }
    return image;
}

void explain(const char* model, const char* input, std::int64_t chosen, const char* output) {
    ov::Core core;
    // Where OpenVINO would compute in bfloat16, maps differ by up to 0.09.
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();

    auto shape = compiled.input(0).get_partial_shape();
    shape[0] = 1;
    request.set_input_tensor(0, read(input, shape.to_shape()));
    ov::Tensor target(ov::element::i64, {1});
    target.data<std::int64_t>()[0] = chosen;
    request.set_tensor("target_class", target);
    request.infer();

    auto heatmap = request.get_tensor("heatmap");
    std::ofstream file(output, std::ios::binary);
    if (!file.write(static_cast<const char*>(heatmap.data()), static_cast<std::streamsize>(heatmap.get_byte_size()))) {
        throw std::runtime_error("the output cannot be written");
    }
    std::cout << "class " << request.get_tensor("heatmap_class").data<std::int64_t>()[0] << ", heatmap "
              << heatmap.get_shape() << '\n';
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) {
        std::cerr << "usage: sample MODEL INPUT CLASS OUTPUT\n";
        return 2;
    }
    try {
        explain(arguments[1], arguments[2], std::stoll(arguments[3]), arguments[4]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
