// A device "sim" whose memory is that of the CPU: operations on it fail when another tensor, or a
// random number generator, is on the CPU, as they do on a GPU.
//
// Operations without a kernel of their own are computed by the CPU's, on copies. Those that make
// views, allocate, or change an optional argument in place cannot go that way and stand here.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_cpu_dispatch.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <unordered_set>

namespace {

constexpr auto SIM = c10::DeviceType::PrivateUse1;
const c10::Device HERE(SIM, 0);
using OptionalTensor = std::optional<at::Tensor>;

// ---- memory ----------------------------------------------------------------------------------

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* start = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {start, start, &c10::free_cpu, HERE};
  }
  at::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(SIM, &memory);

void grow(const c10::Storage& storage, size_t bytes) {
  auto* held = storage.unsafeGetStorageImpl();
  if (bytes <= held->nbytes()) return;
  auto fresh = memory.allocate(bytes);
  if (held->nbytes()) std::memcpy(fresh.get(), held->data(), held->nbytes());
  held->set_data_ptr_noswap(std::move(fresh));
  held->set_nbytes(bytes);
}

// ---- device and random numbers ---------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr auto static_type = SIM;
  c10::Stream only() const { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceType type() const override { return SIM; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return only(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    static int mark;
    *event = &mark;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

constexpr uint64_t SEED = 20240517;

struct Random : at::CPUGeneratorImpl {
  Random() : at::CPUGeneratorImpl(SEED) {
    device_ = HERE;
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

struct Hooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return HERE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator standard = at::make_generator<Random>();
    return standard;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Random>();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    grow(storage, bytes);
  }
};

// ---- tensors: made, viewed, copied -----------------------------------------------------------

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys,
                                           c10::dtype_or_default(type));
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& x) {
  if (x.device().is_cpu()) return x;
  return at::from_blob(x.mutable_data_ptr(), x.sizes(), x.strides(),
                       x.options().device(at::kCPU).requires_grad(false));
}

OptionalTensor on_cpu(const OptionalTensor& x) {
  if (!x || !x->defined()) return std::nullopt;
  return on_cpu(*x);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView guard;
  auto source = on_cpu(from);
  if (from.is_neg()) source._set_neg(true);
  if (to.numel()) on_cpu(to).copy_(source);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor on_sim(const at::Tensor& x) {
  if (!x.defined()) return x;
  return copy_from(x, at::empty_strided(x.sizes(), x.strides(), x.options().device(HERE)), false);
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef symbolic,
                          std::optional<at::MemoryFormat>) {
  auto size = C10_AS_INTARRAYREF_SLOW(symbolic);
  std::vector<int64_t> stride(size.size(), 1);
  for (auto i = static_cast<int64_t>(size.size()) - 2; i >= 0; --i)
    stride[i] = stride[i + 1] * std::max<int64_t>(size[i + 1], 1);
  const auto count = c10::multiply_integers(size);
  grow(self.storage(), (count + self.storage_offset()) * self.dtype().itemsize());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

at::Tensor as_strided(const at::Tensor& x, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(x, size, stride, offset);
}
at::Tensor view(const at::Tensor& x, c10::SymIntArrayRef size) {
  return at::cpu::view_symint(x, size);
}
at::Tensor reshape_alias(const at::Tensor& x, c10::SymIntArrayRef size,
                         c10::SymIntArrayRef stride) {
  return at::cpu::_reshape_alias_symint(x, size, stride);
}
at::Tensor unfold(const at::Tensor& x, int64_t axis, int64_t size, int64_t step) {
  return at::cpu::unfold(x, axis, size, step);
}

at::Tensor& set_storage_part(at::Tensor& x, at::Storage source, c10::SymInt offset,
                             c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::cpu::set__symint(x, source, offset, size, stride);
}
at::Tensor& set_storage(at::Tensor& x, at::Storage source) {
  const int64_t count = source.nbytes() / x.dtype().itemsize();
  return at::cpu::set__symint(x, source, 0, std::vector<c10::SymInt>{count},
                              std::vector<c10::SymInt>{1});
}
at::Tensor& set_tensor(at::Tensor& x, const at::Tensor& source) {
  auto* held = x.unsafeGetTensorImpl();
  held->set_storage_keep_dtype(source.storage());
  held->set_storage_offset(source.storage_offset());
  held->set_sizes_and_strides(source.sizes(), source.strides());
  return x;
}

// ---- one device only -------------------------------------------------------------------------

void same_device(const at::Tensor& x, const std::string& where) {
  TORCH_CHECK(!x.defined() || x.device().type() == SIM,
              "Expected all tensors to be on the same device, but found at least two devices, "
              "sim:0 and ", x.device(), "! (", where, ")");
}

void same_device(const OptionalTensor& x, const std::string& where) {
  if (x) same_device(*x, where);
}

// A number without axes may come from the CPU.
void same_device_or_number(const at::Tensor& x, const std::string& where) {
  if (x.defined() && x.dim() > 0) same_device(x, where);
}

// Positions may come from the CPU.
const std::unordered_set<std::string> INDEXING = {
    "aten::index.Tensor",        "aten::index.Tensor_out",     "aten::_unsafe_index.Tensor",
    "aten::index_put",           "aten::index_put_",           "aten::_index_put_impl_",
    "aten::unsafe_index_put",
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name();
  const auto where = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  const auto check = [&](const at::Tensor& x) {
    if (!INDEXING.count(where)) same_device_or_number(x, where);
  };
  at::Generator asked, twin;
  for (auto i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    auto& value = stack->at(i);
    if (value.isTensor()) {
      check(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& x : value.toTensorList()) check(x);
    } else if (value.isOptionalTensorList()) {
      for (const OptionalTensor& x : value.toOptionalTensorList())
        if (x) check(*x);
    } else if (value.isGenerator()) {
      asked = value.toGenerator();
      TORCH_CHECK(asked.device().type() == SIM,
                  "Expected a 'sim' device type for generator but found '", asked.device(), "' (",
                  where, ")");
      twin = at::make_generator<at::CPUGeneratorImpl>(0);
      twin.set_state(asked.get_state());
      value = c10::IValue(twin);
    }
  }
  at::native::cpu_fallback(op, stack, false);
  if (asked.defined()) asked.set_state(twin.get_state());
}

// ---- what the fallback cannot compute --------------------------------------------------------

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                       c10::SymIntArrayRef dilation, bool transposed,
                       c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  same_device(x, "convolution");
  same_device(weight, "convolution");
  same_device(bias, "convolution");
  at::AutoDispatchBelowADInplaceOrView guard;
  return on_sim(at::convolution_symint(on_cpu(x), on_cpu(weight), on_cpu(bias), stride, padding,
                                       dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight,
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  for (const auto& each : {gradient, x, weight}) same_device(each, "convolution_backward");
  at::AutoDispatchBelowADInplaceOrView guard;
  const std::vector<c10::SymInt> bias{transposed ? weight.sym_size(1) * groups
                                                 : weight.sym_size(0)};
  auto [of_x, of_weight, of_bias] = at::convolution_backward_symint(
      on_cpu(gradient), on_cpu(x), on_cpu(weight), c10::SymIntArrayRef(bias), stride, padding,
      dilation, transposed, output_padding, groups, wanted);
  return {on_sim(of_x), on_sim(of_weight), on_sim(of_bias)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& mean, const OptionalTensor& variance, bool train, double momentum,
    double eps) {
  same_device(x, "batch_norm");
  for (const auto& each : {weight, bias, mean, variance}) same_device(each, "batch_norm");
  at::AutoDispatchBelowADInplaceOrView guard;
  auto [y, own_mean, own_scale] =
      at::native_batch_norm(on_cpu(x), on_cpu(weight), on_cpu(bias), on_cpu(mean),
                            on_cpu(variance), train, momentum, eps);
  return {on_sim(y), on_sim(own_mean), on_sim(own_scale)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("resize_", &resize_);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &unfold);
  library.impl("set_.source_Storage_storage_offset", &set_storage_part);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
  library.impl("native_batch_norm", &batch_norm);
}

using namespace at;  // the macros below are written for it

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(layer_norm, fp32)
  KERNEL_PRIVATEUSEONE(nll_loss, fp32)
  KERNEL_PRIVATEUSEONE(kl_div, fp32)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
}
