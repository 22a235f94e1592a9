# pi_hip: the kernels for AMD GPUs, compiled by hipcc, which knows where its headers and libraries are; CMake's own HIP needs
# a later CMake and packages that not every ROCm has.
set(PI_HIP_ARCHITECTURES "gfx90a;gfx942;gfx1030;gfx1100" CACHE STRING "AMD GPUs to compile for; those hipcc does not know are left out")
find_program(PI_HIPCC hipcc HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES bin)
if(NOT PI_HIPCC)
  message(FATAL_ERROR "PI_HIP is ON, but there is no hipcc (tried PATH, ROCM_PATH and /opt/rocm): install ROCm's HIP, or Debian's hipcc and libamdhip64-dev")
endif()
get_filename_component(HIP_FOLDER ${PI_HIPCC} DIRECTORY)
find_library(PI_AMDHIP amdhip64 HINTS ${HIP_FOLDER}/../lib REQUIRED)

set(HIP_COMPILE ${CMAKE_COMMAND} -E env HIP_PLATFORM=amd ${PI_HIPCC} -x hip)  # it takes a machine with nvcc for NVIDIA's
set(HIP_CODE)
foreach(ARCHITECTURE ${PI_HIP_ARCHITECTURES})
  execute_process(COMMAND ${HIP_COMPILE} --offload-arch=${ARCHITECTURE} -c /dev/null -o ${CMAKE_BINARY_DIR}/hip.o
    RESULT_VARIABLE UNKNOWN OUTPUT_QUIET ERROR_QUIET)
  if(UNKNOWN EQUAL 0)
    list(APPEND HIP_CODE --offload-arch=${ARCHITECTURE})
  endif()
endforeach()
if(NOT HIP_CODE)
  message(FATAL_ERROR "${PI_HIPCC} compiles for none of ${PI_HIP_ARCHITECTURES}")
endif()
message(STATUS "pi_hip: ${HIP_CODE}")

file(GLOB HIP_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cu)
foreach(SOURCE ${HIP_SOURCES})
  get_filename_component(NAME ${SOURCE} NAME_WE)
  set(OBJECT ${CMAKE_BINARY_DIR}/pi_hip/${NAME}.o)
  add_custom_command(OUTPUT ${OBJECT}
    COMMAND ${HIP_COMPILE} ${HIP_CODE} -std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter
      -Wno-pass-failed  # clang leaves loops with exchanges rolled
      -I${CMAKE_CURRENT_SOURCE_DIR} -MD -MF ${OBJECT}.d -c ${SOURCE} -o ${OBJECT}
    DEPENDS ${SOURCE} DEPFILE ${OBJECT}.d VERBATIM COMMENT "Building HIP object pi_hip/${NAME}.o")
  list(APPEND HIP_OBJECTS ${OBJECT})
endforeach()
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/pi_hip)
add_library(pi_hip MODULE ${HIP_OBJECTS})
set_target_properties(pi_hip PROPERTIES
  PREFIX "" LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/Release)
target_link_libraries(pi_hip PRIVATE ${PI_AMDHIP} ${CMAKE_DL_LIBS})
target_link_options(pi_hip PRIVATE ${PI_MODULE_LINK_OPTIONS})
