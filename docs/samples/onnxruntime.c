// Explains one image with ONNX Runtime's C interface:  onnxruntime MODEL INPUT CLASS OUTPUT
//
// MODEL is written by `onnx-gradcam attach --for onnxruntime`, INPUT holds the preprocessed image as float32 numbers in
// the order of the model's input. The heatmap is written to OUTPUT as float32, row by row.

#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { AXES = 4 };

static const OrtApi *ort;

static void fail(const char *message) {
    fprintf(stderr, "error: %s\n", message);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status != NULL) {
        fail(ort->GetErrorMessage(status));
    }
}

// The shape of the first input, an image: the batch, which is free, becomes 1. Returns the number of values.
static size_t shape_of_image(const OrtSession *session, int64_t shape[AXES]) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *tensor;
    size_t axes, count = 1;
    check(ort->SessionGetInputTypeInfo(session, 0, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &tensor));
    check(ort->GetDimensionsCount(tensor, &axes));
    if (axes != AXES) {
        fail("the model takes no images");
    }
    check(ort->GetDimensions(tensor, shape, AXES));
    ort->ReleaseTypeInfo(type);
    shape[0] = 1;
    for (int axis = 0; axis < AXES; axis++) {
        if (shape[axis] < 1) {
            fail("the model takes images of any size; export it for one");
        }
        count *= (size_t)shape[axis];
    }
    return count;
}

static float *read_values(const char *path, size_t count) {
    float *values = malloc(count * sizeof *values);
    FILE *file = fopen(path, "rb");
    if (values == NULL || file == NULL) {
        fail("the input cannot be read");
    }
    if (fread(values, sizeof *values, count, file) != count || fgetc(file) != EOF) {
        fail("the input has another size than the model's image");
    }
    fclose(file);
    return values;
}

static OrtValue *tensor(void *data, size_t bytes, const int64_t *shape, size_t axes, ONNXTensorElementDataType type) {
    OrtMemoryInfo *memory;
    OrtValue *value;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, axes, type, &value));
    ort->ReleaseMemoryInfo(memory);
    return value;
}

static void write_heatmap(const char *path, OrtValue *heatmap, OrtValue *explained) {
    OrtTensorTypeAndShapeInfo *info;
    int64_t shape[3], *class;
    float *values;
    size_t count;
    check(ort->GetTensorTypeAndShape(heatmap, &info));
    check(ort->GetDimensions(info, shape, 3));
    check(ort->GetTensorShapeElementCount(info, &count));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(ort->GetTensorMutableData(heatmap, (void **)&values));
    check(ort->GetTensorMutableData(explained, (void **)&class));
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(values, sizeof *values, count, file) != count || fclose(file) != 0) {
        fail("the output cannot be written");
    }
    printf("class %lld, heatmap [%lld,%lld,%lld]\n", (long long)class[0], (long long)shape[0], (long long)shape[1],
           (long long)shape[2]);
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: onnxruntime MODEL INPUT CLASS OUTPUT\n");
        return 2;
    }
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) {
        fail("the library of ONNX Runtime is older than the header that this program was built with");
    }
    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtAllocator *allocator;
    char *image_name;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "sample", &environment));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(environment, arguments[1], options, &session));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputName(session, 0, allocator, &image_name));

    int64_t shape[AXES], one[] = {1}, chosen[] = {strtoll(arguments[3], NULL, 10)};
    size_t values = shape_of_image(session, shape);
    float *image = read_values(arguments[2], values);
    const char *inputs[] = {image_name, "target_class"}, *outputs[] = {"heatmap", "heatmap_class"};
    const OrtValue *fed[] = {
        tensor(image, values * sizeof *image, shape, AXES, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        tensor(chosen, sizeof chosen, one, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    };
    OrtValue *results[] = {NULL, NULL};
    check(ort->Run(session, NULL, inputs, fed, 2, outputs, 2, results));
    write_heatmap(arguments[4], results[0], results[1]);
    return 0;
}
