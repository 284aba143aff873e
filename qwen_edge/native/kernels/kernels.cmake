# Adds the sources beside this file to llama.cpp's CPU library, each in place of functions that stay as NAME_upstream.
#
# Where llama.cpp has another file, function or signature than they were written for, they stay out, and the build goes
# on. QWEN_EDGE_BUILD_FACTS, a JSON file, is told in "kernels" what is in.

# A function in `file` of ggml-cpu: its name goes to `names` where the file has it with these arguments.
function(qwen_edge_find_function file name arguments names)
  if(EXISTS "${file}")
    file(READ "${file}" text)
    string(FIND "${text}" "\nvoid ${name}(${arguments}) {" at)
    if(NOT at EQUAL -1)
      list(APPEND ${names} "${name}")
      set(${names} "${${names}}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

# One of our sources, which has each of the functions that follow; they are in `file` of ggml-cpu, with these arguments.
function(qwen_edge_add_kernels source file arguments)
  get_target_property(folder ggml-cpu SOURCE_DIR)
  set(upstream "${folder}/ggml-cpu/${file}")
  set(found "")
  foreach(name IN LISTS ARGN)
    qwen_edge_find_function("${upstream}" "${name}" "${arguments}" found)
  endforeach()
  list(LENGTH ARGN n_wanted)
  list(LENGTH found n_found)
  if(NOT n_found EQUAL n_wanted)
    message(STATUS "qwen-edge kernels: ${source} left out: this llama.cpp has other functions in ${file}")
    return()
  endif()
  list(TRANSFORM found REPLACE "(.+)" "\\1=\\1_upstream" OUTPUT_VARIABLE renamed)
  set_property(SOURCE "${upstream}" TARGET_DIRECTORY ggml-cpu APPEND PROPERTY COMPILE_DEFINITIONS ${renamed})
  target_sources(ggml-cpu PRIVATE "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source}")
  message(STATUS "qwen-edge kernels: ${source}: ${found}")
  set_property(GLOBAL APPEND PROPERTY QWEN_EDGE_KERNELS ${found})
endfunction()

function(qwen_edge_add_all_kernels)
  # Without AVX2 there is nothing to gain; a build of all variants has no target of this name.
  if(NOT TARGET ggml-cpu OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    message(STATUS "qwen-edge kernels: none for this target")
    return()
  endif()
  qwen_edge_add_kernels(x86_gemv.cpp arch/x86/repack.cpp
    "int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy, int nr, int nc"
    ggml_gemv_q4_0_8x8_q8_0 ggml_gemv_q4_K_8x8_q8_K ggml_gemv_iq4_nl_8x8_q8_0)
  qwen_edge_add_kernels(x86_dot.cpp arch/x86/quants.c
    "int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc"
    ggml_vec_dot_q5_0_q8_0 ggml_vec_dot_q6_K_q8_K ggml_vec_dot_q8_0_q8_0)
  get_property(kernels GLOBAL PROPERTY QWEN_EDGE_KERNELS)
  if(kernels AND DEFINED QWEN_EDGE_BUILD_FACTS)
    list(JOIN kernels " " kernels)
    file(READ "${QWEN_EDGE_BUILD_FACTS}" facts)
    string(JSON facts SET "${facts}" kernels "\"${kernels}\"")
    file(WRITE "${QWEN_EDGE_BUILD_FACTS}" "${facts}\n")
  endif()
endfunction()

# The target is made later than this file is read.
cmake_language(DEFER CALL qwen_edge_add_all_kernels)
